// Requests to the server.

// Kept in memory only.
let key = "";

export function setKey(value) {
  // The server compares UTF-8; a header can only have characters up to 255.
  key = String.fromCharCode(...new TextEncoder().encode(value.trim()));
}

/** What the server, or the connection to it, has to say to the user. */
export class ServerError extends Error {
  constructor(message, status = 0) {
    super(message);
    this.status = status;
  }
}

/** Send a request; with a body it is a POST of JSON. Returns the response, or throws a ServerError. */
export async function request(path, body = null, signal = null) {
  const headers = key ? { Authorization: `Bearer ${key}` } : {};
  const options = { headers, signal };
  if (body !== null) {
    headers["Content-Type"] = "application/json";
    Object.assign(options, { method: "POST", body: JSON.stringify(body) });
  }
  const response = await fetch(path, options).catch(asConnectionError);
  if (!response.ok) {
    throw new ServerError(await readMessage(response), response.status);
  }
  return response;
}

/** Send a request, and return the JSON that comes back. */
export async function requestJson(path, body = null, signal = null) {
  const response = await request(path, body, signal);
  return response.json().catch(asConnectionError);
}

/** The data of a stream of server-sent events, until [DONE]. */
export async function* readEvents(response) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { done, value } = await reader.read().catch(asConnectionError);
    if (done) {
      throw new ServerError("The answer ended too early, without a message from the server.");
    }
    const lines = (rest + value).split("\n");
    rest = lines.pop();
    for (const line of lines) {
      if (!line.startsWith("data:")) continue;
      const data = line.slice(5).trim();
      if (data === "[DONE]") return;
      const event = JSON.parse(data);
      if (event.error) throw new ServerError(event.error.message);
      yield event;
    }
  }
}

async function readMessage(response) {
  const body = await response.json().catch(() => null);
  return body?.error?.message ?? `The server answered with status ${response.status}.`;
}

function asConnectionError(error) {
  if (error.name === "AbortError") throw error;
  throw new ServerError("The server can't be reached. Check that it is still running.");
}
