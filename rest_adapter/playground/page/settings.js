// The settings of the page, and which values each can have.
import { TEXTS, preferredLanguage } from "./texts.js";

export const THEMES = ["auto", "light", "dark"];

export const DEFAULTS = {
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

const isText = (value) => typeof value === "string";
const isNumber = (value) => isText(value) && Number.isFinite(Number(value)); // as a field has it; empty = default

export const CHECKS = {
  model: isText,
  temperature: isNumber,
  top_p: isNumber,
  max_tokens: isNumber,
  seed: isNumber,
  system: isText,
  boxes: (value) => typeof value === "boolean",
  maxPixels: (value) => Number.isSafeInteger(value) && value >= 0,
  theme: (value) => THEMES.includes(value),
  language: (value) => isText(value) && Object.hasOwn(TEXTS, value),
};
