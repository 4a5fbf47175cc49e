// Boxes over an image: each is a button that cuts its part out.
import { addressOf, asSeen, crop } from "./images.js";
import { html, useState } from "./view.js";

const COLOURS = 6;

const area = ({ box: [left, top, right, bottom] }) => (right - left) * (bottom - top);
const percent = (part, whole) => `${(100 * part) / whole}%`;

function Box({ found, image, colour, withLabel, onCrop, t }) {
  const [left, top, right, bottom] = found.box;
  const style = {
    left: percent(left, image.width),
    top: percent(top, image.height),
    width: percent(right - left, image.width),
    height: percent(bottom - top, image.height),
  };
  const label = found.label || "?";
  return html`<button
    type="button"
    class=${`box colour-${colour}${top < image.height * 0.12 ? " label-inside" : ""}`}
    style=${style}
    title=${t.boxTitle(label)}
    aria-label=${t.boxTitle(label)}
    onClick=${() => onCrop(found)}
  >
    ${withLabel && html`<span class="label" aria-hidden="true">${label}</span>`}
  </button>`;
}

// The images that an answer has boxes for, as the model saw them, with the boxes drawn over them.
export function Boxes({ answer, onCrop, t }) {
  const [isShown, show] = useState(true);
  const [withLabels, label] = useState(true);
  const found = answer.boxes;
  const images = answer.images.map((image) => asSeen(image, answer.isTransposed));
  const labels = [...new Set(found.map((each) => each.label))];
  const shown = [...new Set(found.map((each) => each.image_index))].filter((index) => images[index]?.width);
  if (!shown.length) return null;
  const cutOut = async (each) => {
    const image = images[each.image_index];
    onCrop({ label: each.label, image: await crop(image, each.box, `${each.label || "crop"}.png`) });
  };
  return html`<div class="found">
    <div class="found-bar">
      <span>${t.boxesFound(found.length)}</span>
      <label><input type="checkbox" checked=${isShown} onChange=${(e) => show(e.target.checked)} />${t.boxes}</label>
      <label>
        <input type="checkbox" checked=${withLabels} onChange=${(e) => label(e.target.checked)} />${t.labels}
      </label>
    </div>
    ${shown.map((index) => {
      const boxes = found.filter((each) => each.image_index === index).sort((a, b) => area(b) - area(a));
      const { width, height } = images[index];
      const shownWidth = `min(100%, max(24rem, ${width}px), ${(65 * width) / height}vh)`;
      return html`<div class="canvas" key=${index} style=${{ width: shownWidth }}>
        <img src=${addressOf(images[index])} alt=${images[index].name} />
        ${isShown &&
        boxes.map(
          (each, number) =>
            html`<${Box}
              key=${number}
              found=${each}
              image=${images[index]}
              colour=${labels.indexOf(each.label) % COLOURS}
              withLabel=${withLabels}
              onCrop=${cutOut}
              t=${t}
            />`,
        )}
      </div>`;
    })}
  </div>`;
}
