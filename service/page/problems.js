// Every refusal in words: what happened and what to do, beside the server's own code.

import { element } from "./elements.js";
import { hasKey } from "./server.js";

const WORDS = {
  unreachable: "The server does not answer. The page goes on asking, and tells when it is back.",
  nothing_served: "No model is in service here. Wait until one is, and try again.",
  unreadable_file: "This is a folder, or a file that changed after it was chosen. Choose an image once more.",
  undecodable_image: "This is not a whole JPEG, PNG, WebP or GIF image. Choose another file.",
  empty_body: "The file is empty. Choose another one.",
  unauthorized: "The server asks for a key. Enter yours above and try again.",
  forbidden: "This key may classify and no more.",
  unknown_model: "This version is no longer served. Choose another one above.",
  body_too_large: "The file is larger than the server takes. Make it smaller and try again.",
  image_too_large: "The image has more pixels than the server takes. Make it smaller and try again.",
  unsupported_media_type: "This is no image. Choose a JPEG, PNG, WebP or GIF file.",
  invalid_parameter: "The model cannot be asked this.",
  overloaded: "The server has more to do than it can answer in time.",
  rate_limited: "This key has used up its requests for now.",
  starting: "The models are being loaded.",
  draining: "This server is shutting down.",
  model_unavailable: "The model is not in service; the server's log says why.",
  deadline_exceeded: "The answer was not there in time.",
  internal_error: "The server failed on this image; its log has the reason.",
};

const OTHER_KEY = "The server does not know this key. Enter another one above and try again.";

// A paragraph about a Problem.
export function inWords(problem) {
  const words = problem.code === "unauthorized" && hasKey() ? OTHER_KEY : WORDS[problem.code] ?? "The server refused.";
  const wait = problem.retryAfter ? ` Try again in ${problem.retryAfter} s.` : "";
  const said = problem.detail ? ` The server says: ${problem.detail}` : "";
  return element("p", { className: "problem" }, `${words}${wait}${said} `, element("code", {}, problem.code));
}
