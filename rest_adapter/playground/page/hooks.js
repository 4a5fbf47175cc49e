// The state of the page that has a life of its own: models, history, settings, files, the place in the thread.
import { listModels } from "./api.js";
import { CHECKS, DEFAULTS } from "./settings.js";
import * as store from "./store.js";
import { TEXTS } from "./texts.js";
import { useCallback, useEffect, useLayoutEffect, useRef, useState } from "./view.js";

// The models stay known when they cannot be listed again.
export function useModels(key) {
  const [models, setModels] = useState([]);
  const [failure, setFailure] = useState(null);
  const load = useCallback(async () => {
    try {
      const found = await listModels(key);
      setModels(found);
      setFailure(null);
      return found;
    } catch (error) {
      setFailure(error.plain ? error.plain() : { message: String(error) });
      return [];
    }
  }, [key]);
  useEffect(() => void load(), [load]);
  // After an answer with this status; undefined = a good one.
  const check = (status) => {
    if (failure || [0, 401, 404].includes(status)) load();
  };
  return { models, failure, load, check };
}

// `problem` says why the browser does not keep all: `full` or `off`.
export function useHistory() {
  const [history, setHistory] = useState([]);
  const [problem, setProblem] = useState(null);
  const unsaved = useRef(new Map()); // by id; tried again whenever something changes
  const act = useCallback(async (step) => {
    let found = null;
    const attempt = async (work) => {
      try {
        return await work();
      } catch (error) {
        found = error?.name === "QuotaExceededError" ? "full" : "off";
      }
    };
    if (step) await attempt(step);
    for (const [id, conversation] of unsaved.current) {
      await attempt(async () => {
        await store.saveConversation(conversation);
        if (unsaved.current.get(id) === conversation) unsaved.current.delete(id);
      });
    }
    await attempt(async () => setHistory(await store.loadConversations()));
    setProblem(found);
  }, []);
  useEffect(() => void act(), [act]);
  return {
    history,
    problem,
    save: (conversation) => {
      unsaved.current.set(conversation.id, conversation);
      return act();
    },
    remove: (id) => {
      unsaved.current.delete(id);
      return act(() => store.deleteConversation(id));
    },
    removeAll: () => {
      unsaved.current.clear();
      return act(store.deleteAll);
    },
  };
}

export function useSettings() {
  const [settings, setSettings] = useState(() => store.loadSettings(DEFAULTS, CHECKS));
  useLayoutEffect(() => {
    store.saveSettings(settings);
    document.documentElement.dataset.theme = settings.theme;
    document.documentElement.lang = settings.language === "zh" ? "zh-CN" : "en";
    document.title = TEXTS[settings.language].title;
  }, [settings]);
  return [settings, (changes) => setSettings((old) => ({ ...old, ...changes }))];
}

// Keeps the end of the thread in view while the reader is there.
export function useFollowing(turns) {
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

// Office programs copy text with a picture of it, browsers and file managers a picture with its address or name.
function isText(data, files, target) {
  const text = data.getData("text/plain").trim();
  const isField = target.closest?.("textarea, input:not([type=file])");
  const isName = /^\S+:\/\/\S+$/.test(text) || files.some(({ name }) => text.endsWith(name));
  return isField && text && !isName;
}

// Files that are dropped or pasted anywhere on the page.
export function useFiles(onFiles) {
  const [isOver, setOver] = useState(false);
  const latest = useRef(onFiles);
  latest.current = onFiles;
  useEffect(() => {
    const take = (event, data) => {
      const files = [...(data?.files ?? [])];
      if (!files.length || (event.type === "paste" && isText(data, files, event.target))) return;
      event.preventDefault();
      latest.current(files);
    };
    const listeners = {
      dragover: (event) => {
        if (!event.dataTransfer?.types.includes("Files")) return;
        event.preventDefault();
        setOver(true);
      },
      dragleave: (event) => event.relatedTarget || setOver(false),
      drop: (event) => {
        setOver(false);
        take(event, event.dataTransfer);
      },
      paste: (event) => take(event, event.clipboardData),
    };
    for (const [name, listener] of Object.entries(listeners)) addEventListener(name, listener);
    return () => {
      for (const [name, listener] of Object.entries(listeners)) removeEventListener(name, listener);
    };
  }, []);
  return isOver;
}
