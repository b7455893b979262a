"""Install peers, start each in turn, and ask it for one image.

    python -m benchmarks.peers --model MODEL.onnx --image IMAGE [NAME ...]

Prints a table: name, version, the most probable label, or why there is none. The exit code is 1 if a peer has none.
"""

import argparse
import sys
from pathlib import Path

from benchmarks.peers.catalog import PEERS, Peer
from benchmarks.peers.environment import PeerUnavailable, ask, prepare, running

ENVIRONMENTS = Path(".venv-peers")
PORT = 8190


def main() -> int:
    """Try each; the exit code."""
    options = _parser().parse_args()
    complete = True
    print(f"{'peer':<11} {'version':<45} answer")
    for name in options.names or PEERS:
        peer = PEERS[name]
        try:
            answer = _answer(peer, options)
        except PeerUnavailable as reason:
            complete = False
            first, _, log = str(reason).partition("\n")
            answer = f"none: {first}"
            print(log, file=sys.stderr)
        print(f"{name:<11} {peer.version:<45} {answer}", flush=True)
    return 0 if complete else 1


def _answer(peer: Peer, options: argparse.Namespace) -> str:
    environment = prepare(peer, options.environments)
    with running(peer, environment, options.model, options.port):
        try:
            return ask(peer, options.port, options.image.read_bytes())
        except ValueError as error:
            raise PeerUnavailable(str(error)) from error


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.peers", description="Ask each peer for one image.")
    parser.add_argument("names", nargs="*", choices=[*PEERS, []], metavar="NAME", help=f"of {', '.join(PEERS)} (all)")
    parser.add_argument("--model", type=Path, required=True, help="an artifact of resnet-export")
    parser.add_argument("--image", type=Path, required=True, help="an encoded image")
    parser.add_argument("--environments", type=Path, default=ENVIRONMENTS, help=f"where to install ({ENVIRONMENTS})")
    parser.add_argument("--port", type=int, default=PORT, help=f"where the peers listen ({PORT})")
    return parser


if __name__ == "__main__":
    sys.exit(main())
