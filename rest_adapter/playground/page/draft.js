// The question that is being written. While an earlier one is edited, the draft before waits under it: nothing is lost.

const EMPTY = { text: "", images: [] };

// `turn` is the index of the turn that is edited, `original` what it has; `bad` are the names of files that are no
// images; whenever `focus` changes, the field of the text gets the focus.
export const NO_DRAFT = { ...EMPTY, original: EMPTY, turn: null, bad: [], under: null, focus: 0 };

const isChanged = ({ text, images, original }) =>
  text !== original.text ||
  images.length !== original.images.length ||
  images.some((image, index) => image !== original.images[index]);

export function editing(draft, turn, index) {
  const focus = draft.focus + 1;
  if (draft.turn === index) return { ...draft, focus };
  const under = isChanged(draft) ? draft : draft.under;
  return { ...NO_DRAFT, text: turn.text, images: turn.images, original: turn, turn: index, under, focus };
}

// After it was sent or given up.
export const next = (draft) => ({ ...(draft.under ?? NO_DRAFT), focus: draft.focus + 1 });

// Without the turns from this index on: what was written to change one of them becomes a question of its own.
export function withoutTurns(draft, from = 0) {
  const below = (each) => {
    if (!each) return null;
    if (each.turn === null || each.turn < from) return { ...each, under: below(each.under) };
    if (!isChanged(each)) return below(each.under);
    return { ...each, turn: null, original: EMPTY, under: below(each.under) };
  };
  return { ...(below(draft) ?? NO_DRAFT), focus: draft.focus + 1 };
}
