// The boxes and their capture devices, with a small plot of what each box uses.

import { DEVICE, count, draw, joined, listOf, make, named, objectOf, reasonList, text } from "./dom.js";

let drawn = "";

function curve(values) {
  const points = values.map((value, at) => [
    values.length > 1 ? (100 * at) / (values.length - 1) : 100,
    typeof value === "number" ? 26 - (24 * Math.min(100, Math.max(0, value))) / 100 : null,
  ]).filter((point) => point[1] !== null);
  if (points.length === 1) points.unshift([0, points[0][1]]);
  const svg = draw("svg", { viewBox: "0 0 100 26", preserveAspectRatio: "none", "aria-hidden": "true" },
    draw("line", { class: "base", x1: 0, x2: 100, y1: 26, y2: 26 }));
  if (points.length) {
    const line = points.map((point) => point.map((number) => number.toFixed(2)).join(",")).join(" ");
    const [left, right] = [points[0][0], points[points.length - 1][0]];
    svg.append(draw("polygon", { class: "area", points: `${left},26 ${line} ${right},26` }),
      draw("polyline", { class: "line", points: line }));
  }
  return svg;
}

const fixed = (value, digits) => (typeof value === "number" ? String(Number(value.toFixed(digits))) : "");

function usage(gateway) {
  const extra = objectOf(gateway.status.gateway_ext_data);
  const grid = make("div", "usage");
  const row = (label, of, note) => {
    const values = gateway.usage.map((report) => report[of]);
    const last = values[values.length - 1];
    if (typeof last !== "number") return;
    const value = make("div", "", `${fixed(last, 1)} %`, note && make("small", "", note));
    grid.append(make("span", "muted", label), curve(values), value);
  };
  row("CPU", "cpu", "");
  row("Memory", "memory", extra.memory_size ? `of ${fixed(extra.memory_size, 2)} GB` : "");
  row("Disk", "disk", extra.disk_size ? `of ${fixed(extra.disk_size, 2)} GB` : "");
  return grid;
}

function dot(status) {
  const mark = make("span", `dot ${["online", "offline"].includes(status) ? status : ""}`);
  mark.title = text(status);
  return mark;
}

function subDevice(device) {
  let extra = device.ep_ext_data; // a string that holds JSON, or the object itself (decision D3)
  try { extra = typeof extra === "string" ? JSON.parse(extra) : extra; } catch { extra = {}; }
  extra = objectOf(extra);
  return make("div", "ep", dot(device.ep_status), make("div", "",
    make("bdi", "", text(device.ep_name) || text(device.ep_ip)),
    make("small", "", joined(device.ep_name ? device.ep_ip : "", named(DEVICE, device.ep_type), extra.group_name, extra.sw_version))));
}

function gatewayBox(gateway) {
  const status = gateway.status;
  const extra = objectOf(status.gateway_ext_data);
  const age = make("span", "facts age");
  age.dataset.at = gateway.reported_at;
  const devices = listOf(status.sub_devices).map(objectOf);
  return make("article", "gateway",
    make("header", "", dot(status.gateway_status), make("h3", "", make("bdi", "", text(status.gateway_name) || "(no name)")), age),
    make("div", "facts",
      make("div", "", joined(status.gateway_ip, extra.gateway_mac)),
      make("div", "", joined(status.gateway_sn, status.dev_sno)),
      make("div", "", joined(extra.sw_version && `software ${text(extra.sw_version)}`, extra.sdk_version && `SDK ${text(extra.sdk_version)}`))),
    reasonList(gateway.reasons),
    usage(gateway),
    devices.length ? make("div", "eps", ...devices.map(subDevice)) : null);
}

export function showGateways(gateways) {
  const news = JSON.stringify(gateways);
  if (news === drawn) return;
  drawn = news;
  for (const gateway of gateways) gateway.status = objectOf(gateway.status);
  document.getElementById("gateways").replaceChildren(...gateways.map(gatewayBox));
  const devices = gateways.flatMap((gateway) => listOf(gateway.status.sub_devices));
  const online = devices.filter((device) => objectOf(device).ep_status === "online").length;
  document.getElementById("devices-note").textContent = gateways.length
    ? `${count(gateways.length, "gateway", "gateways")}, ${online} of ${count(devices.length, "device", "devices")} online`
    : "no report yet";
}
