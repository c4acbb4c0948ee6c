// Small tools. Whatever was received is untrusted: it reaches the document as text only, never as
// markup, and nothing about its types is taken for granted.

export function make(tag, className, ...children) {
  const element = document.createElement(tag);
  if (className) element.className = className;
  element.append(...children.filter((child) => child !== null));
  return element;
}

export function draw(tag, attributes, ...children) {
  const element = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  element.append(...children);
  return element;
}

export function text(value) {
  if (value === null || value === undefined) return "";
  return typeof value === "object" ? JSON.stringify(value) : String(value);
}

export const objectOf = (value) => (value && typeof value === "object" && !Array.isArray(value) ? value : {});
export const listOf = (value) => (Array.isArray(value) ? value : []);
export const joined = (...values) => values.map(text).filter(Boolean).join(" · ");
export const whole = (number) => number.toLocaleString("en");
export const named = (names, value) => (Object.hasOwn(names, text(value)) ? names[text(value)] : "");

export function count(number, one, many) {
  return `${whole(number)} ${number === 1 ? one : many}`;
}

export function clock(milliseconds) {
  const date = new Date(milliseconds);
  if (isNaN(date)) return text(milliseconds);
  const two = (number) => String(number).padStart(2, "0");
  const day = [date.getFullYear(), two(date.getMonth() + 1), two(date.getDate())].join("-");
  return `${day} ${[date.getHours(), date.getMinutes(), date.getSeconds()].map(two).join(":")}`;
}

export function span(milliseconds) {
  const seconds = Math.max(0, Math.round(milliseconds / 1000));
  if (seconds < 120) return `${seconds} s`;
  if (seconds < 7200) return `${Math.round(seconds / 60)} min`;
  return seconds < 172800 ? `${Math.round(seconds / 3600)} h` : `${Math.round(seconds / 86400)} days`;
}

// What the schema says against a report: "field: rule".
export function reasonList(reasons) {
  if (!reasons.length) return null;
  return make("ul", "reasons", ...reasons.map((reason) => {
    const [place, ...rule] = reason.split(":");
    return make("li", "", make("b", "", place), ":" + rule.join(":"));
  }));
}

export const DEVICE = { 0: "gate", 1: "capture camera", 2: "IPC static", 3: "IPC dynamic", 4: "door access" };
