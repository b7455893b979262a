// Classify an image with fetch: node examples/classify.mjs IMAGE [URL]. In a browser the function works as it stands.
// 429 and 503 are repeated, no sooner than Retry-After says.

const ATTEMPTS = 5;

/** Predictions for an encoded image (Blob, ArrayBuffer or bytes), most probable first. */
export async function classify(image, url = "http://127.0.0.1:8000") {
  for (let attempt = 1; ; attempt += 1) {
    const response = await fetch(`${url}/classify`, {
      method: "POST",
      body: image,
      headers: { "Content-Type": "application/octet-stream" },
    });
    const answer = await response.json();
    if (response.ok) return answer.predictions;
    if (![429, 503].includes(response.status) || attempt === ATTEMPTS) {
      throw new Error(`${answer.title}: ${answer.detail} (${answer.code})`);
    }
    const seconds = Number(response.headers.get("Retry-After") ?? 1);
    await new Promise((resolve) => setTimeout(resolve, seconds * 1000));
  }
}

if (typeof process !== "undefined" && import.meta.filename === process.argv[1]) {
  const { readFile } = await import("node:fs/promises");
  const [best] = await classify(await readFile(process.argv[2]), process.argv[3]);
  console.log(`${best.label} ${best.probability.toFixed(3)}`);
}
