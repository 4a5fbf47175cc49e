// The page: what it holds, and what happens.
import { listModels } from "./api.js";
import { ask, emptyAnswer } from "./answer.js";
import { Composer } from "./composer.js";
import { Decisions } from "./decisions.js";
import { CodeDialog, CropDialog } from "./dialogs.js";
import { Welcome } from "./examples.js";
import { fromFile, newId } from "./images.js";
import { imagesOf, turnsUpTo } from "./request.js";
import { Side } from "./side.js";
import * as store from "./store.js";
import { TEXTS, preferredLanguage } from "./texts.js";
import { Bar, KeyForm, Tabs } from "./top.js";
import { Failure, Turn } from "./turn.js";
import { html, render, useCallback, useEffect, useLayoutEffect, useRef, useState } from "./view.js";

const DEFAULTS = {
  model: "",
  temperature: "",
  top_p: "",
  max_tokens: "",
  seed: "",
  system: "",
  boxes: true,
  maxPixels: 0,
  theme: "auto",
  language: preferredLanguage(),
};
const NO_DRAFT = { text: "", images: [], turn: null, notice: "", focus: 0 };
const TITLE_CHARS = 60;

const newConversation = () => ({ id: newId(), title: "", updated: Date.now(), turns: [] });
const cleared = (draft) => ({ ...NO_DRAFT, focus: draft.focus + 1 });

function useModels(key) {
  const [models, setModels] = useState([]);
  const [failure, setFailure] = useState(null);
  const load = useCallback(async () => {
    let found = [];
    let problem = null;
    try {
      found = await listModels(key);
    } catch (error) {
      problem = error.plain ? error.plain() : { message: String(error) };
    }
    setModels(found);
    setFailure(problem);
    return found;
  }, [key]);
  useEffect(() => void load(), [load]);
  return { models, failure, load };
}

function useHistory() {
  const [history, setHistory] = useState([]);
  const [isKept, setKept] = useState(true);
  const act = useCallback(async (...steps) => {
    try {
      for (const step of steps) await step();
      setHistory(await store.loadConversations());
    } catch {
      setKept(false);
    }
  }, []);
  useEffect(() => void act(), [act]);
  return {
    history,
    isKept,
    save: (conversation) => act(() => store.saveConversation(conversation)),
    remove: (id) => act(() => store.deleteConversation(id)),
    removeAll: () => act(store.deleteAll),
  };
}

// Keeps the end of the thread in view while the reader is there.
function useFollowing(turns) {
  const thread = useRef(null);
  const isAtEnd = useRef(true);
  useLayoutEffect(() => {
    if (isAtEnd.current) thread.current.scrollTop = thread.current.scrollHeight;
  }, [turns]);
  const onScroll = () => {
    const { scrollTop, scrollHeight, clientHeight } = thread.current;
    isAtEnd.current = scrollHeight - scrollTop - clientHeight < 60;
  };
  return { thread, onScroll };
}

// Files that are dropped or pasted anywhere on the page.
function useFiles(onFiles) {
  const [isOver, setOver] = useState(false);
  const latest = useRef(onFiles);
  latest.current = onFiles;
  useEffect(() => {
    const filesOf = (data) => [...(data?.files ?? [])];
    const listeners = {
      dragover: (event) => {
        if (!event.dataTransfer?.types.includes("Files")) return;
        event.preventDefault();
        setOver(true);
      },
      dragleave: (event) => event.relatedTarget || setOver(false),
      drop: (event) => {
        setOver(false);
        const files = filesOf(event.dataTransfer);
        if (!files.length) return;
        event.preventDefault();
        latest.current(files);
      },
      paste: (event) => {
        const files = filesOf(event.clipboardData);
        if (!files.length) return;
        event.preventDefault();
        latest.current(files);
      },
    };
    for (const [name, listener] of Object.entries(listeners)) addEventListener(name, listener);
    return () => {
      for (const [name, listener] of Object.entries(listeners)) removeEventListener(name, listener);
    };
  }, []);
  return isOver;
}

function useSettings() {
  const [settings, setSettings] = useState(() => store.loadSettings(DEFAULTS));
  useLayoutEffect(() => {
    store.saveSettings(settings);
    document.documentElement.dataset.theme = settings.theme;
    document.documentElement.lang = settings.language === "zh" ? "zh-CN" : "en";
    document.title = TEXTS[settings.language].title;
  }, [settings]);
  return [settings, (changes) => setSettings((old) => ({ ...old, ...changes }))];
}

function App() {
  const [settings, change] = useSettings();
  const [key, setKey] = useState(store.loadKey);
  const { models, failure, load } = useModels(key);
  const { history, isKept, save, remove, removeAll } = useHistory();
  const [conversation, setConversation] = useState(newConversation);
  const [draft, setDraft] = useState(NO_DRAFT);
  const [running, setRunning] = useState(null); // the index of the turn that is being answered
  const controller = useRef(null); // set before the page shows it
  const [dialog, setDialog] = useState(null);
  const [isSideOpen, openSide] = useState(false);
  const [tab, setTab] = useState("chat");
  const t = TEXTS[settings.language];
  const chosenOf = (list) => list.find((each) => each.id === settings.model) ?? list[0];
  const model = chosenOf(models);
  const limits = model?.image_limits;
  const canDecide = model?.features?.includes("decisions");
  const isDeciding = canDecide && tab === "decisions";
  const { thread, onScroll } = useFollowing(conversation.turns);

  const addFiles = async (files) => {
    const read = await Promise.allSettled(files.map(fromFile));
    const images = read.flatMap((each) => (each.status === "fulfilled" ? [each.value] : []));
    const bad = files.filter((_, index) => read[index].status === "rejected").map((file) => file.name);
    setDraft((old) => {
      const all = [...old.images, ...images];
      const isTooMany = limits?.max_images && all.length > limits.max_images;
      const notice = bad.length ? t.notAnImage(bad.join(", ")) : isTooMany ? t.tooMany(limits.max_images) : "";
      return { ...old, images: all, notice, focus: old.focus + 1 };
    });
  };
  const isOver = useFiles(addFiles);

  const stop = () => controller.current?.abort();
  useEffect(() => {
    const onKeyDown = (event) => {
      if (event.key !== "Escape" || document.querySelector("dialog[open]")) return;
      stop();
      openSide(false);
    };
    addEventListener("keydown", onKeyDown);
    return () => removeEventListener("keydown", onKeyDown);
  }, []);

  // What was deleted while its answer was on the way is not saved again.
  const deleted = useRef(new Set());
  const keep = async (changed) => {
    if (!deleted.current.has(changed.id)) await save(changed);
  };

  // Asks the last of `turns`, which replace those of the conversation.
  const run = async (turns) => {
    const index = turns.length - 1;
    controller.current = new AbortController();
    const { signal } = controller.current;
    const base = { ...conversation, turns, updated: Date.now() };
    base.title ||= (turns[0].text || turns[0].images[0]?.name || "").slice(0, TITLE_CHARS);
    const withAnswer = (answer) => ({ ...base, turns: turns.with(index, { ...turns[index], answer }) });
    const show = (answer) => setConversation((shown) => (shown.id === base.id ? withAnswer(answer) : shown));
    setRunning(index);
    show(emptyAnswer());
    await keep(withAnswer(emptyAnswer()));
    const asked = model ?? chosenOf(await load()); // the page may still be loading
    const answer = await ask(turnsUpTo(turns, index), settings, asked, key, signal, show);
    show(answer);
    controller.current = null;
    setRunning(null);
    await keep({ ...withAnswer(answer), updated: Date.now() });
    if ([0, 401, 404].includes(answer.error?.status)) load();
  };
  const send = (text = draft.text.trim(), images = draft.images) => {
    if (controller.current || (!text && !images.length)) return;
    const earlier = draft.turn === null ? conversation.turns : conversation.turns.slice(0, draft.turn);
    setDraft(cleared);
    run([...earlier, { id: newId(), text, images, maxPixels: settings.maxPixels, answer: null }]);
  };
  const again = (index) => {
    const turn = { ...conversation.turns[index], maxPixels: settings.maxPixels, answer: null };
    if (!controller.current) run([...conversation.turns.slice(0, index), turn]);
  };
  const open = (found) => {
    stop();
    setConversation(found);
    setDraft(cleared);
    openSide(false);
    setTab("chat");
  };
  const actionsOf = (index) => ({
    edit: () => {
      const { text, images } = conversation.turns[index];
      setDraft((old) => ({ ...NO_DRAFT, text, images, turn: index, focus: old.focus + 1 }));
    },
    again: () => again(index),
    code: () => setDialog({ code: turnsUpTo(conversation.turns, index) }),
    crop: (crop) => setDialog({ crop }),
  });
  const historyActions = {
    open,
    remove: (id) => {
      deleted.current.add(id);
      remove(id);
      if (id === conversation.id) open(newConversation());
    },
    removeAll: () => {
      deleted.current.add(conversation.id);
      removeAll();
      open(newConversation());
    },
  };
  const askCrop = () => {
    setDraft((old) => ({ ...old, images: [...old.images, dialog.crop.image], focus: old.focus + 1 }));
    setDialog(null);
  };

  return html`
    <${Bar}
      ...${{ models, model, settings, change, isSideOpen, t }}
      onSide=${() => openSide(!isSideOpen)}
      onNew=${() => open(newConversation())}
    />
    <div class="columns">
      <${Side}
        ...${{ history, isKept, settings, change, model, t }}
        isOpen=${isSideOpen}
        onClose=${() => openSide(false)}
        current=${conversation.id}
        actions=${historyActions}
      />
      <main>
        ${canDecide && html`<${Tabs} tab=${tab} onChange=${setTab} t=${t} />`}
        ${isDeciding &&
        html`<${Decisions} ...${{ draft, setDraft, settings, model, t }} onFiles=${addFiles} secret=${key} />`}
        <div class="thread" hidden=${isDeciding} ref=${thread} onScroll=${onScroll} tabindex="0" role="log" aria-label=${t.title}>
          ${(failure?.status === 401 || key) &&
          html`<${KeyForm}
            value=${key}
            isRefused=${failure?.status === 401}
            onChange=${(value) => {
              store.saveKey(value);
              if (value === key) load();
              else setKey(value);
            }}
            t=${t}
          />`}
          ${failure && (failure.status !== 401 || key) && html`<${Failure} error=${failure} onRetry=${load} t=${t} />`}
          ${conversation.turns.length === 0 &&
          html`<${Welcome}
            isDemo=${model?.root === "qwen-vl-demo"}
            language=${settings.language}
            onAsk=${(text, images) => send(text, images)}
            t=${t}
          />`}
          ${conversation.turns.map(
            (turn, index) =>
              html`<${Turn}
                key=${turn.id}
                turn=${turn}
                images=${imagesOf(turnsUpTo(conversation.turns, index))}
                isRunning=${running === index}
                isBusy=${running !== null}
                limits=${limits}
                actions=${actionsOf(index)}
                t=${t}
              />`,
          )}
        </div>
        ${!isDeciding &&
        html`<${Composer}
          ...${{ draft, setDraft, limits, t }}
          maxPixels=${settings.maxPixels}
          isBusy=${running !== null}
          onFiles=${addFiles}
          onSend=${() => send()}
          onStop=${stop}
          onCancel=${() => setDraft(cleared)}
        />`}
      </main>
    </div>
    ${isOver && html`<div class="drop" aria-hidden="true">${t.dropHere}</div>`}
    ${dialog?.code &&
    html`<${CodeDialog}
      turns=${dialog.code}
      ...${{ settings, model, t }}
      hasKey=${key !== ""}
      onClose=${() => setDialog(null)}
    />`}
    ${dialog?.crop &&
    html`<${CropDialog} crop=${dialog.crop} onAsk=${askCrop} onClose=${() => setDialog(null)} t=${t} />`}
  `;
}

render(html`<${App} />`, document.getElementById("app"));
