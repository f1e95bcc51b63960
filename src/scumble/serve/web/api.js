// The server's API as the page uses it. Nothing here goes to any other host.

export const key = {
  get: () => sessionStorage.getItem("scumble-key") ?? "",
  set: (value) => (value ? sessionStorage.setItem("scumble-key", value) : sessionStorage.removeItem("scumble-key")),
};

const headers = () => ({
  "content-type": "application/json",
  ...(key.get() ? { authorization: `Bearer ${key.get()}` } : {}),
});

/** A GET. Returns the response; throws an Error with the server's own words. */
export async function get(path) {
  return ask(path, { headers: headers() });
}

/** A POST that streams. Yields the events' JSON; throws an Error with the server's own words. */
export async function* stream(path, body, signal) {
  const response = await ask(path, {
    method: "POST", headers: headers(), signal, body: JSON.stringify({ ...body, stream: true }),
  });
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { done, value } = await reader.read().catch(broken);
    if (done) throw new Error("The answer broke off: its end did not come.");
    const events = (rest + value).split("\n\n");
    rest = events.pop();
    for (const event of events) {
      const data = event.split("\n").filter((line) => line.startsWith("data: ")).map((line) => line.slice(6)).join("\n");
      if (data === "[DONE]") return;
      if (!data) continue;
      const payload = JSON.parse(data);
      if (payload.error) throw new Error(payload.error.message);
      yield payload;
    }
  }
}

async function ask(path, options) {
  const response = await fetch(path, options).catch(broken);
  if (!response.ok) throw await failure(response);
  return response;
}

/** The connection's own errors differ from browser to browser, and help nobody. */
function broken(problem) {
  if (problem.name === "AbortError") throw problem;
  throw new Error("The server cannot be reached, or it ended the connection. Is it still running?");
}

async function failure(response) {
  let message = `${response.status} ${response.statusText}`;
  try {
    message = (await response.json()).error.message ?? message;
  } catch { /* not JSON: the status says it */ }
  const hint = response.status === 401 ? ". Enter one under Settings." : "";
  return Object.assign(new Error(message + hint), { status: response.status });
}
