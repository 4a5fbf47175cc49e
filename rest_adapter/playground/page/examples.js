// The empty page: what to do, and examples. `examples.json` has the answers of the demo model, which the tests check.
import { fromAddress } from "./images.js";
import { html, useEffect, useState } from "./view.js";

const FOLDER = "playground/examples/";

export function Welcome({ isDemo, language, onAsk, t }) {
  const [examples, setExamples] = useState([]);
  useEffect(() => {
    fetch(`${FOLDER}examples.json`)
      .then((response) => response.json())
      .then(setExamples)
      .catch(() => setExamples([]));
  }, []);
  const begin = async ({ images, question }) => {
    const files = await Promise.all(images.map((name) => fromAddress(FOLDER + name, name)));
    onAsk(question[language], files);
  };
  return html`<section class="welcome">
    <h2>${t.begin}</h2>
    <p>${t.beginHow}</p>
    ${isDemo && html`<p class="demo">${t.demo}</p>`}
    ${examples.length > 0 && html`<h3>${t.examples}</h3>`}
    <ul class="examples">
      ${examples.map(
        (each) =>
          html`<li key=${each.id}>
            <button type="button" onClick=${() => begin(each)}>
              <span class="pictures">
                ${each.images.map((name) => html`<img key=${name} src=${FOLDER + name} alt="" />`)}
              </span>
              <span>${each.question[language]}</span>
            </button>
          </li>`,
      )}
    </ul>
  </section>`;
}
