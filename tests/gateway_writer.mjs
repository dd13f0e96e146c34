// The gateway-like writer of gateway_writer.py in the gateway's own language.
// usage: node gateway_writer.mjs locking|lockless <sessions dir> <first> <writes> <log>
import fs from "node:fs";
import path from "node:path";
import { randomUUID } from "node:crypto";
import { setTimeout as sleep } from "node:timers/promises";

const KEYS = 250;
const SCALE = 20;
const [mode, folder, first, writes, logPath] = process.argv.slice(2);
const index = path.join(folder, "sessions.json");
const marker = index + ".lock";
const started = Number(fs.readFileSync("/proc/self/stat", "utf8").split(")").pop().trim().split(" ")[19]);

function stale() {
  let text, mtimeMs;
  try {
    text = fs.readFileSync(marker, "utf8");
    mtimeMs = fs.statSync(marker).mtimeMs;
  } catch {
    return false;
  }
  let payload;
  try {
    payload = JSON.parse(text);
  } catch {
    return Date.now() - mtimeMs > 30_000;
  }
  if (!Number.isInteger(payload.pid)) return Date.now() - mtimeMs > 30_000;
  if (Date.now() - Date.parse(payload.createdAt) > 30_000) return true;
  try {
    process.kill(payload.pid, 0);
    return false;
  } catch {
    return true;
  }
}

async function acquire() {
  for (let attempt = 1; ; attempt++) {
    try {
      const fd = fs.openSync(marker, "wx");
      const createdAt = new Date().toISOString();
      fs.writeSync(fd, JSON.stringify({ pid: process.pid, createdAt, starttime: started }, null, 2));
      fs.closeSync(fd);
      return;
    } catch (error) {
      if (error.code !== "EEXIST") throw error;
      if (stale()) fs.rmSync(marker, { force: true });
      else await sleep(Math.min(1000, 50 * attempt) / SCALE);
    }
  }
}

let cached;
for (let value = Number(first); ; value++) {
  if (value >= Number(first) + Number(writes) && fs.existsSync(`${logPath}.stop`)) break;
  const key = `agent:main:telegram:direct:${value % KEYS}`;
  if (mode === "locking") await acquire();
  const before = fs.statSync(index);
  const reuse = mode === "lockless" && cached && cached.mtimeMs === before.mtimeMs && cached.size === before.size;
  const store = reuse ? cached.store : JSON.parse(fs.readFileSync(index, "utf8"));
  const values = [...(store[key]?.values ?? []), value];
  store[key] = { sessionId: `own-${value % KEYS}`, updatedAt: Date.now(), values };
  const temp = `${index}.${process.pid}.${randomUUID()}.tmp`;
  fs.writeFileSync(temp, JSON.stringify(store, null, 2), { mode: 0o600 });
  fs.renameSync(temp, index);
  if (mode === "locking") fs.rmSync(marker, { force: true });
  else {
    const after = fs.statSync(index);
    cached = { mtimeMs: after.mtimeMs, size: after.size, store };
  }
  fs.appendFileSync(logPath, `${key} ${value}\n`);
  await sleep(Math.random() * 12);
}
