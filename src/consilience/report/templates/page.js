"use strict";
// Values under the pointer, and larger figures. Without this script the page is whole, but still.
(() => {
  const REACH = 24; // pixels within which a point is read
  const STEPS = [1, 1.5, 2, 3, 4.5, 7];

  const made = (kind, name) => {
    const element = document.createElement(kind);
    element.className = name;
    element.hidden = true;
    document.body.append(element);
    return element;
  };
  const tip = made("div", "tip"), dot = made("div", "dot");
  tip.setAttribute("role", "status");
  const quiet = () => { tip.hidden = dot.hidden = true; };

  const nearest = (series, box, x, y) => {
    let best = null, least = REACH * REACH;
    for (const one of series) {
      one.place.forEach(([across, down], i) => {
        const px = box.left + across * box.width, py = box.top + down * box.height;
        const distance = (px - x) ** 2 + (py - y) ** 2;
        if (distance < least) { least = distance; best = { one, i, px, py }; }
      });
    }
    return best;
  };

  const tell = ({ one, i, px, py }) => {
    const lines = one.axes.map((axis, k) => `${axis}: ${one.told[i][k]}`);
    tip.textContent = (one.name ? [one.name, ...lines] : lines).join("\n");
    tip.hidden = dot.hidden = false;
    dot.style.left = `${px}px`;
    dot.style.top = `${py}px`;
    const width = tip.offsetWidth, height = tip.offsetHeight;
    tip.style.left = `${Math.max(4, Math.min(px + 14, document.documentElement.clientWidth - width - 4))}px`;
    tip.style.top = `${py - height - 12 < 0 ? py + 14 : py - height - 12}px`;
  };

  for (const figure of document.querySelectorAll("figure")) {
    const view = figure.querySelector(".scroll"), image = figure.querySelector("img");
    const series = JSON.parse(figure.querySelector("script").textContent);
    let step = 0, held = null;

    view.addEventListener("pointermove", (event) => {
      if (held) {
        view.scrollLeft = held.left - (event.clientX - held.x);
        view.scrollTop = held.top - (event.clientY - held.y);
        return quiet();
      }
      const found = nearest(series, image.getBoundingClientRect(), event.clientX, event.clientY);
      return found ? tell(found) : quiet();
    });
    view.addEventListener("pointerdown", (event) => {
      if (step && event.pointerType === "mouse" && event.target === image) {
        held = { x: event.clientX, y: event.clientY, left: view.scrollLeft, top: view.scrollTop };
        view.setPointerCapture(event.pointerId);
      }
    });
    for (const end of ["pointerup", "pointercancel"]) view.addEventListener(end, () => { held = null; });
    view.addEventListener("pointerleave", quiet);
    view.addEventListener("scroll", quiet);

    const bar = document.createElement("div");
    bar.className = "zoom";
    const button = (text, label, change) => {
      const element = document.createElement("button");
      element.type = "button";
      element.textContent = text;
      element.setAttribute("aria-label", `${label}: ${image.alt}`);
      element.addEventListener("click", () => show(change(step)));
      bar.append(element);
      return element;
    };
    const less = button("−", "Smaller", (now) => now - 1);
    const more = button("+", "Larger", (now) => now + 1);

    let base = 0; // width of the figure as the page shows it
    const show = (next) => {
      if (!step) base = image.getBoundingClientRect().width;
      const middle = [view.scrollLeft + view.clientWidth / 2, view.scrollTop + view.clientHeight / 2];
      const ratio = STEPS[next] / STEPS[step];
      step = next;
      figure.classList.toggle("large", step > 0);
      image.style.width = step ? `${base * STEPS[step]}px` : "";
      image.style.maxWidth = step ? "none" : "";
      view.scrollLeft = middle[0] * ratio - view.clientWidth / 2;
      view.scrollTop = middle[1] * ratio - view.clientHeight / 2;
      less.disabled = step === 0;
      more.disabled = step === STEPS.length - 1;
    };
    less.disabled = true;
    figure.prepend(bar);
  }
  window.addEventListener("scroll", quiet, { passive: true });
})();
