// What the browser keeps: conversations with their images in IndexedDB, settings in localStorage, the key for this tab.

const NAME = "qwen-vl-playground";
const CONVERSATIONS = "conversations";
let opened;

function done(request) {
  return new Promise((resolve, reject) => {
    request.onsuccess = () => resolve(request.result);
    request.onerror = () => reject(request.error);
  });
}

function database() {
  opened ??= new Promise((resolve, reject) => {
    const request = indexedDB.open(NAME, 1);
    request.onupgradeneeded = () => request.result.createObjectStore(CONVERSATIONS, { keyPath: "id" });
    request.onsuccess = () => resolve(request.result);
    request.onerror = () => reject(request.error);
  });
  return opened;
}

async function conversations(mode) {
  return (await database()).transaction(CONVERSATIONS, mode).objectStore(CONVERSATIONS);
}

export async function loadConversations() {
  const found = await done((await conversations("readonly")).getAll());
  return found.sort((a, b) => b.updated - a.updated);
}

export async function saveConversation(conversation) {
  await done((await conversations("readwrite")).put(conversation));
}

export async function deleteConversation(id) {
  await done((await conversations("readwrite")).delete(id));
}

export async function deleteAll() {
  await done((await conversations("readwrite")).clear());
}

export function loadSettings(defaults) {
  try {
    return { ...defaults, ...JSON.parse(localStorage.getItem(NAME) || "{}") };
  } catch {
    return defaults;
  }
}

export function saveSettings(settings) {
  try {
    localStorage.setItem(NAME, JSON.stringify(settings));
  } catch {
    // The browser keeps nothing: the settings last as long as the page.
  }
}

export function loadKey() {
  try {
    return sessionStorage.getItem(NAME) || "";
  } catch {
    return "";
  }
}

export function saveKey(key) {
  try {
    sessionStorage.setItem(NAME, key);
  } catch {
    // As above.
  }
}
