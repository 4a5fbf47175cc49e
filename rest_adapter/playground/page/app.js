// The page: what it holds, and what happens.
import { ask, emptyAnswer } from "./answer.js";
import { Composer } from "./composer.js";
import { Decisions } from "./decisions.js";
import { CodeDialog, CropDialog } from "./dialogs.js";
import { NO_DRAFT, editing, next, withoutTurns } from "./draft.js";
import { Welcome } from "./examples.js";
import { useFiles, useFollowing, useHistory, useModels, useSettings } from "./hooks.js";
import { fromFile, newId } from "./images.js";
import { turnsUpTo } from "./request.js";
import { Side } from "./side.js";
import * as store from "./store.js";
import { TEXTS } from "./texts.js";
import { Bar, KeyForm, Tabs } from "./top.js";
import { Failure, Turn } from "./turn.js";
import { html, render, useEffect, useRef, useState } from "./view.js";

const TITLE_CHARS = 60;
const WIDE = matchMedia("(min-width: 50.01rem)"); // there the side is always shown, see style.css

const newConversation = () => ({ id: newId(), title: "", updated: Date.now(), turns: [] });

// On a phone the side covers the page, which cannot be reached meanwhile.
function useSide() {
  const [isOpen, setOpen] = useState(false);
  const menu = useRef(null);
  const close = () => {
    setOpen(false);
    if (isOpen) requestAnimationFrame(() => menu.current?.focus());
  };
  useEffect(() => {
    const onChange = () => setOpen(false);
    WIDE.addEventListener("change", onChange);
    return () => WIDE.removeEventListener("change", onChange);
  }, []);
  return { isOpen, menu, close, open: () => setOpen(true) };
}

// The conversation that is shown, and what asks and changes it.
function useConversation({ settings, key, modelOf, models, load, check, save }) {
  const [conversation, setConversation] = useState(newConversation);
  const [running, setRunning] = useState(null); // the index of the turn that is being answered
  const [former, setFormer] = useState(null); // {id, turns} before turns were replaced
  const controller = useRef(null); // set before the page shows it
  const deleted = useRef(new Set()); // what was deleted while its answer was on the way is not saved again
  const { turns } = conversation;

  const keep = async (changed) => {
    if (!deleted.current.has(changed.id)) await save(changed);
  };
  const show = (changed) => setConversation((shown) => (shown.id === changed.id ? changed : shown));
  const stop = () => controller.current?.abort();

  // Asks a turn; `asked` replace the turns of the conversation.
  const run = async (asked, index) => {
    controller.current = new AbortController();
    const { signal } = controller.current;
    setFormer(index < turns.length ? { id: conversation.id, turns } : null);
    const base = { ...conversation, turns: asked, updated: Date.now() };
    base.title ||= (asked[0].text || asked[0].images[0]?.name || "").slice(0, TITLE_CHARS);
    const withAnswer = (answer) => ({ ...base, turns: asked.with(index, { ...asked[index], answer }) });
    setRunning(index);
    show(withAnswer(emptyAnswer()));
    await keep(withAnswer({ ...emptyAnswer(), isStopped: true })); // so it stays if the page ends before the answer
    const model = modelOf(models) ?? modelOf(await load()); // the page may still be loading
    const answer = await ask(turnsUpTo(asked, index), settings, model, key, signal, (partial) => {
      show(withAnswer(partial));
      if (!deleted.current.has(base.id)) store.savePartial(base.id, asked[index].id, partial);
    });
    show(withAnswer(answer));
    controller.current = null;
    setRunning(null);
    await keep({ ...withAnswer(answer), updated: Date.now() });
    check(answer.error?.status);
  };
  // Asks a new question in place of the turns from `index` on.
  const send = (text, images, index) => {
    if (controller.current || (!text && !images.length)) return false;
    const turn = { id: newId(), text, images, maxPixels: settings.maxPixels, answer: null };
    run([...turns.slice(0, index), turn], index);
    return true;
  };
  const again = (index) => {
    if (controller.current) return;
    run(turns.with(index, { ...turns[index], maxPixels: settings.maxPixels, answer: null }), index);
  };
  const undo = () => {
    const changed = { ...conversation, turns: former.turns };
    setFormer(null);
    show(changed);
    keep(changed);
  };
  const open = (found) => {
    stop();
    setFormer(null);
    setConversation(found);
  };
  const replaced = former?.id === conversation.id && running === null ? former.turns.length - turns.length : null;
  const forget = (id) => deleted.current.add(id);
  return { conversation, running, replaced, send, again, undo, open, stop, forget };
}

function Undo({ dropped, onUndo, t }) {
  return html`<div class="undo" role="status">
    <p class="note">
      ${dropped > 0 ? t.dropped(dropped) : t.replaced} <button type="button" onClick=${onUndo}>${t.undo}</button>
    </p>
  </div>`;
}

function App() {
  const [settings, change] = useSettings();
  const [key, setKey] = useState(store.loadKey);
  const { models, failure, load, check } = useModels(key);
  const { history, problem, save, remove, removeAll } = useHistory();
  const modelOf = (list) => list.find((each) => each.id === settings.model) ?? list[0];
  const { conversation, running, replaced, send, again, undo, open, stop, forget } = useConversation({
    ...{ settings, key, modelOf, models, load, check, save },
  });
  const [draft, setDraft] = useState(NO_DRAFT);
  const [dialog, setDialog] = useState(null);
  const [tab, setTab] = useState("chat");
  const side = useSide();
  const { turns } = conversation;
  const { thread, onScroll } = useFollowing(turns);
  const t = TEXTS[settings.language];
  const model = modelOf(models);
  const limits = model?.image_limits;
  const canDecide = model?.features?.includes("decisions");
  const isDeciding = canDecide && tab === "decisions";
  const isKeyRefused = failure?.status === 401;

  const addFiles = async (files) => {
    const read = await Promise.allSettled(files.map(fromFile));
    const images = read.flatMap((each) => (each.status === "fulfilled" ? [each.value] : []));
    const bad = files.filter((_, index) => read[index].status === "rejected").map((file) => file.name);
    setDraft((old) => ({ ...old, images: [...old.images, ...images], bad, focus: old.focus + 1 }));
  };
  const isOver = useFiles(addFiles);

  useEffect(() => {
    const onKeyDown = (event) => {
      if (event.key !== "Escape" || document.querySelector("dialog[open]")) return;
      if (side.isOpen) side.close();
      else if (!isDeciding) stop();
    };
    addEventListener("keydown", onKeyDown);
    return () => removeEventListener("keydown", onKeyDown);
  }, [side.isOpen, isDeciding]);

  const sendDraft = () => {
    const index = draft.turn ?? turns.length;
    if (send(draft.text.trim(), draft.images, index)) setDraft((old) => withoutTurns(next(old), index));
  };
  const leaveFor = (found) => {
    open(found);
    setDraft(withoutTurns);
    side.close();
    setTab("chat");
  };
  const begin = () => leaveFor(newConversation());
  const historyActions = {
    open: leaveFor,
    remove: (id) => {
      forget(id);
      remove(id);
      if (id === conversation.id) begin();
    },
    removeAll: () => {
      forget(conversation.id);
      removeAll();
      begin();
    },
  };
  const actionsOf = (turn, index) => ({
    edit: () => setDraft((old) => editing(old, turn, index)),
    again: () => again(index),
    code: () => setDialog({ code: turnsUpTo(turns, index) }),
    crop: (crop) => setDialog({ crop }),
  });
  const askCrop = () => {
    setDraft((old) => ({ ...old, images: [...old.images, dialog.crop.image], focus: old.focus + 1 }));
    setDialog(null);
  };
  const useKey = (value) => {
    store.saveKey(value);
    if (value === key) load();
    else setKey(value);
  };
  const keyForm = html`<${KeyForm} value=${key} isRefused=${isKeyRefused} onChange=${useKey} t=${t} />`;

  return html`
    <${Bar}
      ...${{ models, model, settings, change, t }}
      side=${side}
      onNew=${begin}
    />
    <div class="columns">
      <${Side}
        ...${{ history, problem, settings, change, model, t }}
        isOpen=${side.isOpen}
        onClose=${side.close}
        current=${conversation.id}
        actions=${historyActions}
      >
        ${key && !isKeyRefused && keyForm}
      <//>
      <main inert=${side.isOpen}>
        ${canDecide && html`<${Tabs} tab=${tab} onChange=${setTab} t=${t} />`}
        ${failure &&
        html`<div class="access">
          ${isKeyRefused && keyForm} ${(!isKeyRefused || key) && html`<${Failure} error=${failure} onRetry=${load} t=${t} />`}
        </div>`}
        ${canDecide &&
        html`<${Decisions}
          ...${{ draft, setDraft, settings, model, t }}
          isHidden=${!isDeciding}
          onFiles=${addFiles}
          onEnd=${check}
          secret=${key}
        />`}
        <div class="thread" hidden=${isDeciding} ref=${thread} onScroll=${onScroll} tabindex="0" role="log" aria-label=${t.title}>
          ${turns.length === 0 &&
          html`<${Welcome}
            isDemo=${model?.root === "qwen-vl-demo"}
            language=${settings.language}
            onAsk=${(text, images) => send(text, images, 0)}
            t=${t}
          />`}
          ${turns.map(
            (turn, index) =>
              html`<${Turn}
                key=${turn.id}
                turn=${turn}
                isRunning=${running === index}
                isBusy=${running !== null}
                limits=${limits}
                actions=${actionsOf(turn, index)}
                t=${t}
              />`,
          )}
        </div>
        ${!isDeciding && replaced !== null && html`<${Undo} dropped=${replaced} onUndo=${undo} t=${t} />`}
        ${!isDeciding &&
        html`<${Composer}
          ...${{ draft, setDraft, turns, limits, t }}
          maxPixels=${settings.maxPixels}
          isBusy=${running !== null}
          onFiles=${addFiles}
          onSend=${sendDraft}
          onStop=${stop}
          onCancel=${() => setDraft(next)}
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
