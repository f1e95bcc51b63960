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
  const response = await fetch(path, { headers: headers() });
  if (!response.ok) throw await failure(response);
  return response;
}

/** A POST that streams. Yields the events' JSON; throws an Error with the server's own words. */
export async function* stream(path, body, signal) {
  const response = await fetch(path, {
    method: "POST", headers: headers(), signal, body: JSON.stringify({ ...body, stream: true }),
  });
  if (!response.ok) throw await failure(response);
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { done, value } = await reader.read();
    if (done) break;
    const events = (rest + value).split("\n\n");
    rest = events.pop();
    for (const event of events) {
      const data = event.split("\n").filter((line) => line.startsWith("data: ")).map((line) => line.slice(6)).join("\n");
      if (!data || data === "[DONE]") continue;
      const payload = JSON.parse(data);
      if (payload.error) throw new Error(payload.error.message);
      yield payload;
    }
  }
}

async function failure(response) {
  let message = `${response.status} ${response.statusText}`;
  try {
    message = (await response.json()).error.message ?? message;
  } catch { /* not JSON: the status says it */ }
  const hint = response.status === 401 ? ". Enter one under Settings." : "";
  return Object.assign(new Error(message + hint), { status: response.status });
}
