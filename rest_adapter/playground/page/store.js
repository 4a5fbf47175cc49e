// What the browser keeps: conversations with their images in IndexedDB; settings, and answers on their way, in
// localStorage; the key for this tab. What is kept may be of another version or broken, and is checked when it is read.

const NAME = "qwen-vl-playground";
const CONVERSATIONS = "conversations";
const PARTIAL = `${NAME}.partial.`;
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

// A request may succeed in a transaction that then fails, as when the disk is full.
async function write(act) {
  const transaction = (await database()).transaction(CONVERSATIONS, "readwrite");
  act(transaction.objectStore(CONVERSATIONS));
  await new Promise((resolve, reject) => {
    transaction.oncomplete = resolve;
    transaction.onabort = transaction.onerror = () => reject(transaction.error);
  });
}

const isConversation = ({ id, title, turns }) =>
  typeof id === "string" &&
  typeof title === "string" &&
  Array.isArray(turns) &&
  turns.every((turn) => typeof turn?.text === "string" && Array.isArray(turn.images));

export async function loadConversations() {
  const store = (await database()).transaction(CONVERSATIONS).objectStore(CONVERSATIONS);
  const found = (await done(store.getAll())).filter(isConversation).map(withPartial);
  return found.sort((a, b) => b.updated - a.updated);
}

export async function saveConversation(conversation) {
  await write((store) => store.put(conversation));
  forgetPartial(conversation.id);
}

export async function deleteConversation(id) {
  await write((store) => store.delete(id));
  forgetPartial(id);
}

export async function deleteAll() {
  await write((store) => store.clear());
  attempt(() => {
    for (const name of Object.keys(localStorage)) if (name.startsWith(PARTIAL)) localStorage.removeItem(name);
  });
}

// A browser may keep nothing at all: what is written lasts as long as the page then.
function attempt(act, otherwise) {
  try {
    return act() ?? otherwise;
  } catch {
    return otherwise;
  }
}

// What an answer has so far, so that it outlives the page. Without its images, which the conversation has.
export function savePartial(id, turn, { images: _, ...answer }) {
  attempt(() => localStorage.setItem(PARTIAL + id, JSON.stringify({ turn, answer })));
}

const forgetPartial = (id) => attempt(() => localStorage.removeItem(PARTIAL + id));

function withPartial(conversation) {
  const partial = attempt(() => JSON.parse(localStorage.getItem(PARTIAL + conversation.id)));
  if (!partial?.answer) return conversation;
  const turns = conversation.turns.map((turn) =>
    turn.id === partial.turn ? { ...turn, answer: { ...turn.answer, ...partial.answer, isStopped: true } } : turn,
  );
  return { ...conversation, turns };
}

// `checks` has a function for each setting that tells whether a value can be one.
export function loadSettings(defaults, checks) {
  const kept = attempt(() => JSON.parse(localStorage.getItem(NAME)), {});
  const settings = { ...defaults };
  for (const name of Object.keys(defaults)) {
    if (Object.hasOwn(kept, name) && checks[name](kept[name])) settings[name] = kept[name];
  }
  return settings;
}

export function saveSettings(settings) {
  attempt(() => localStorage.setItem(NAME, JSON.stringify(settings)));
}

export const loadKey = () => attempt(() => sessionStorage.getItem(NAME), "");

export function saveKey(key) {
  attempt(() => sessionStorage.setItem(NAME, key));
}
