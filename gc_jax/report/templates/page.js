// What a page can do beyond being read. Without it, everything is visible.
"use strict";
(() => {
  const all = (query, within = document) => [...within.querySelectorAll(query)];
  const make = (tag, settings = {}, ...children) => {
    const element = Object.assign(document.createElement(tag), settings);
    element.append(...children);
    return element;
  };

  // The opacity of every map: one number, however many sliders.
  const sliders = () => all("input[name=opacity]");
  const setOpacity = (percent) => {
    document.documentElement.style.setProperty("--opacity", percent / 100);
    for (const slider of sliders()) {
      slider.value = percent;
      slider.nextElementSibling.value = `${percent}%`;
    }
  };
  document.addEventListener("input", (event) => {
    if (event.target.name === "opacity") setOpacity(event.target.value);
  });

  // Filters: by class, right or wrong, method.
  const controls = document.querySelector(".controls");
  const wanted = (name) => controls.elements[name]?.value ?? "";
  const filter = () => {
    const [label, right, method] = ["class", "right", "method"].map(wanted);
    const fits = (value, choice) =>
      value === undefined || !choice || value.split(" ").includes(choice);
    for (const one of all("[data-class], [data-right]")) {
      one.hidden = !(fits(one.dataset.class, label) &&
        fits(one.dataset.right, right));
    }
    for (const one of all("[data-method]")) {
      one.hidden = !fits(one.dataset.method, method);
    }
    for (const group of all(".group")) {
      group.hidden = !group.querySelector(".example:not([hidden])");
    }
    const cards = all(".example[data-class]");
    const shown = cards.filter((card) => !card.hidden).length;
    controls.querySelector(".count").value = shown === cards.length
      ? `${shown} pictures`
      : `${shown} of ${cards.length} pictures`;
  };
  // Numbers of the classes, by the chosen method.
  const numbers = document.getElementById("numbers-by-class");
  const byMethod = numbers && JSON.parse(numbers.textContent);
  const renumber = () => {
    const select = controls.elements.method;
    const chosen = byMethod?.[wanted("method") || numbers.dataset.method];
    if (!chosen) return;
    for (const row of all("table.classes tbody tr")) {
      for (const cell of all("[data-column]", row)) {
        cell.textContent = chosen[row.dataset.class][cell.dataset.column];
      }
    }
    for (const word of all("[data-shown-method]")) {
      word.textContent = select?.value
        ? select.selectedOptions[0].textContent
        : word.dataset.shownMethod;
    }
  };

  if (controls) {
    const update = () => {
      filter();
      renumber();
    };
    controls.hidden = false;
    controls.addEventListener("submit", (event) => event.preventDefault());
    controls.addEventListener("change", update);
    // The fields have their first values once the event is over.
    controls.addEventListener("reset", () => setTimeout(() => {
      setOpacity(100);
      update();
    }));
    update();
  }

  // Sorting: a click, another for the other way, a third for the first order.
  const worth = (row, column) => {
    const cell = row.cells[column];
    const text = (cell.dataset.sort ?? cell.textContent).trim();
    const number = parseFloat(text.replaceAll(",", "").replace("−", "-"));
    return [text, number];
  };
  const compare = ([a, x], [b, y]) =>
    Number.isNaN(x) || Number.isNaN(y)
      ? a.localeCompare(b, undefined, { numeric: true })
      : x - y;
  const sort = (table, column, way) => {
    const body = table.tBodies[0];
    table.unsorted ??= [...body.rows];
    const rows = [...table.unsorted];
    const keys = new Map(rows.map((row) => [row, worth(row, column)]));
    const isEmpty = (row) => keys.get(row)[0] === "";
    if (way) {
      rows.sort((a, b) =>
        isEmpty(a) - isEmpty(b) ||
        way * compare(keys.get(a), keys.get(b)));
    }
    body.append(...rows);
    table.classList.toggle("sorted", way !== 0);
  };
  for (const table of all("table.sortable")) {
    const heads = [...table.tHead.rows[0].cells];
    heads.forEach((head, column) => {
      const button = make("button", { type: "button" });
      button.append(...head.childNodes);
      head.append(button);
      button.addEventListener("click", () => {
        const order = head.getAttribute("aria-sort");
        // Numbers are most often read from the highest down.
        const steps = column ? ["descending", "ascending", null]
          : ["ascending", "descending", null];
        const next = steps[(steps.indexOf(order) + 1) % 3];
        for (const other of heads) other.removeAttribute("aria-sort");
        if (next) head.setAttribute("aria-sort", next);
        sort(table, column, { ascending: 1, descending: -1 }[next] ?? 0);
      });
    });
  }

  // Enlarging: a dialog with the picture, its map and the next ones.
  const pictures = all(".layers, img.figure");
  const dialog = make("dialog", { className: "enlarged" });
  dialog.setAttribute("aria-label", "Enlarged picture");
  dialog.innerHTML = `
    <div class="stage"></div>
    <p class="caption" aria-live="polite"></p>
    <form method="dialog">
      <button type="button" name="previous">‹ Previous</button>
      <button type="button" name="next">Next ›</button>
      <label class="opacity">Map <input type="range" name="opacity" min="0"
        max="100" value="100"> <output>100%</output></label>
      <button name="close">Close</button>
    </form>`;
  const stage = dialog.querySelector(".stage");
  let current = 0;
  const visible = () => pictures.filter((one) => one.offsetParent !== null);
  const show = (place) => {
    const shown = visible();
    current = (place + shown.length) % shown.length;
    const source = shown[current];
    const copy = source.cloneNode(true);
    const style = getComputedStyle(source);
    for (const name of ["--image", "--outline", "--composite", "--frame"]) {
      copy.style.setProperty(name, style.getPropertyValue(name));
    }
    const inner = copy.matches("img") ? copy : copy.querySelector("img");
    const { width, height } = inner;
    stage.style.setProperty("--ratio", width / height || 1);
    stage.classList.toggle("pixels", source.closest(".pixels") !== null);
    stage.replaceChildren(copy);
    const name = source.closest(".example")?.querySelector("h4")?.textContent;
    const caption = source.closest("figure")?.querySelector("figcaption");
    dialog.querySelector(".caption").textContent =
      [name, caption?.textContent].filter(Boolean).join(" · ");
  };
  for (const picture of pictures) {
    const button = make("button", { type: "button", className: "enlarge" });
    const alt = picture.alt ?? picture.querySelector("img").alt;
    button.setAttribute("aria-label", `Enlarge: ${alt}`);
    picture.replaceWith(button);
    button.append(picture);
    button.addEventListener("click", () => {
      show(visible().indexOf(picture));
      dialog.showModal();
      dialog.opener = button;
    });
  }
  if (pictures.length) {
    document.body.append(dialog);
    const hasMaps = document.querySelector(".layers img.heat") !== null;
    dialog.querySelector(".opacity").hidden = !hasMaps;
    dialog.addEventListener("click", (event) => {
      const step = { previous: -1, next: 1 }[event.target.name];
      if (step) show(current + step);
      if (event.target === dialog) dialog.close();  // beside the picture
    });
    dialog.addEventListener("keydown", (event) => {
      const step = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
      if (step && event.target.type !== "range") show(current + step);
    });
  }

  // Boxes that scroll say so.
  const boxes = all(".scroll");
  const tell = () => {
    for (const box of boxes) {
      const hidden = box.scrollWidth - box.clientWidth > 1;
      const hint = box.previousElementSibling;
      if (hint?.matches(".hint")) hint.hidden = !hidden;
      else if (hidden) {
        const words = "Wider than the page: scroll it sideways →";
        box.before(make("p", { className: "hint", textContent: words }));
      }
    }
  };
  new ResizeObserver(tell).observe(document.body);
  for (const details of all("details")) details.addEventListener("toggle", tell);
  tell();

  // What is folded is printed too.
  let folded = [];
  addEventListener("beforeprint", () => {
    folded = all("details:not([open])");
    for (const details of folded) details.open = true;
  });
  addEventListener("afterprint", () => {
    for (const details of folded) details.open = false;
  });

  // A link into a fold opens it; the contents tell where the reader is.
  const unfold = () => {
    const target = location.hash &&
      document.getElementById(decodeURIComponent(location.hash.slice(1)));
    const details = target && target.closest("details");
    if (details && !details.open) {
      details.open = true;
      target.scrollIntoView();
    }
  };
  addEventListener("hashchange", unfold);
  unfold();
  const links = new Map(all(".contents a").map((link) => [
    document.getElementById(link.hash.slice(1)), link]));
  const mark = new IntersectionObserver((entries) => {
    for (const { target, isIntersecting } of entries) {
      if (!isIntersecting) continue;
      for (const link of links.values()) link.removeAttribute("aria-current");
      const link = links.get(target);
      link.setAttribute("aria-current", "true");
      // Where the contents are a line, it moves along.
      link.closest("nav").scrollLeft = link.offsetLeft - 24;
    }
  }, { rootMargin: "0px 0px -75% 0px" });
  for (const head of links.keys()) mark.observe(head);
})();
