"""A page to play with: python sample.py --web

Any two trained runs side by side: what may come next, samples as they are drawn, the inside of the
model as a picture (inside.py). A server for one person on one machine, by the standard library:

    GET  /        the page, and its two files
    GET  /runs    which runs there are
    POST /look    what a run makes of a beginning
    POST /sample  a sample, a line of JSON for each token, until its end or till nobody listens

It answers on 127.0.0.1 alone, and only to what names it so: a page from elsewhere that has its own
name point here (DNS rebinding), or that sends its visitor's browser here, is refused. What comes in
is bounded, a run is looked up by its name in a list, and no path is made of anything that was sent.
"""

import argparse
import errno
import io
import json
import os
import socket
import socketserver
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from concurrent.futures import CancelledError, ThreadPoolExecutor
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import sample

from .inside import look
from .shelf import Loaded, Shelf

HERE = Path(__file__).parent
FILES = {
    "/": ("play.html", "text/html"),
    "/play.css": ("play.css", "text/css"),
    "/play.js": ("play.js", "text/javascript"),
}
HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; "
    "connect-src 'self'; img-src data:; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
}
BODY = 64_000  # bytes of a request
PROMPT = 4000  # characters
TOKENS = 2000  # of all samples of one request together
PLACES = 16  # requests that are worked on at the same time
THREADS = 64  # requests that are open at the same time
PATIENCE = 20  # seconds for all of a request to come; for one who does not read, to go on
LINGER = 5  # seconds that requests have to end, when the server ends
DRAIN = 2  # seconds that are spent on what nobody will read
BOUNDS = {"temperature": (0, 100), "top_k": (0, 10**6), "top_p": (1e-6, 1), "seed": (0, 2**53 - 1),
          "num": (1, 20), "length": (1, TOKENS)}
PORTS = range(8000, 8020)
DEFAULT_PORT = 80  # of http, which browsers leave out where they name a server


class Refused(Exception):
    """A request that is answered with this status and this sentence."""

    def __init__(self, status: int, sentence: str):
        super().__init__(sentence)
        self.status = status


class Server(ThreadingHTTPServer):
    """A thread for each request; one more computes for all of them, in the order they come.

    So ten that sample get a token each in turn, and none waits for another's end.
    """

    allow_reuse_address = os.name != "nt"  # there it would let two serve at one port
    request_queue_size = 64

    def __init__(self, shelf: Shelf, port: int = 0):
        """port 0: any that is free. OSError: it is taken."""
        self.shelf = shelf
        self.files = {path: (HERE / name).read_bytes() for path, (name, _) in FILES.items()}
        self.worker, self.closing = ThreadPoolExecutor(1), False
        self.places = threading.BoundedSemaphore(PLACES)
        self.threads = threading.BoundedSemaphore(THREADS)
        super().__init__(("127.0.0.1", port), Handler)
        names = ("127.0.0.1", "localhost")
        self.hosts = {f"{name}:{self.server_port}" for name in names}
        if self.server_port == DEFAULT_PORT:
            self.hosts |= {*names}

    def server_bind(self) -> None:
        """As HTTPServer's, which would ask the network for this machine's name."""
        socketserver.TCPServer.server_bind(self)
        self.server_name, self.server_port = self.server_address

    def process_request(self, request: socket.socket, client_address) -> None:
        """A thread for it; where there are too many, and none ends in a second, it is cut off."""
        if not self.threads.acquire(timeout=1):
            return self.shutdown_request(request)
        try:
            super().process_request(request, client_address)
        except BaseException:  # no thread began that could release it
            self.threads.release()
            raise

    def process_request_thread(self, request: socket.socket, client_address) -> None:
        try:
            super().process_request_thread(request, client_address)
        finally:
            self.threads.release()

    def compute(self, function: Callable, *arguments):
        """What the function gives, worked out when it is its turn."""
        try:
            return self.worker.submit(function, *arguments).result()
        except (CancelledError, RuntimeError) as error:
            if self.closing:
                raise ConnectionAbortedError("the server is going down") from error
            raise

    def handle_error(self, request, client_address) -> None:
        pass  # the one who asked has gone; of all else the handler tells

    def close(self) -> None:
        """Free the port, and let what is being computed come to its end.

        The threads of requests are waited for, LINGER at most: one that still held a half-drawn
        sample while Python shuts down would abort the process. Who only waits for words may stay.
        """
        self.closing = True
        self.server_close()
        self.worker.shutdown(cancel_futures=True)
        end = time.monotonic() + LINGER
        for _ in range(THREADS):
            if not self.threads.acquire(timeout=max(0.0, end - time.monotonic())):
                break


class Incoming(io.RawIOBase):
    """What comes in on a connection, until the deadline: then TimeoutError, however it trickles."""

    def __init__(self, connection: socket.socket, seconds: float):
        self.connection, self.end = connection, time.monotonic() + seconds

    def readable(self) -> bool:
        return True

    def readinto(self, buffer) -> int:
        if (left := self.end - time.monotonic()) <= 0:
            raise TimeoutError("the request did not come in time")
        before = self.connection.gettimeout()
        self.connection.settimeout(left)
        try:
            return self.connection.recv_into(buffer)
        finally:
            self.connection.settimeout(before)  # which what is written has


class Handler(BaseHTTPRequestHandler):
    """One request."""

    timeout = PATIENCE
    disable_nagle_algorithm = True  # a token is not to wait for the next
    server: Server

    def setup(self) -> None:
        super().setup()
        self.rfile.close()
        self.rfile = io.BufferedReader(Incoming(self.connection, PATIENCE))

    def do_GET(self) -> None:
        self.answer({path: self.send_file for path in FILES} | {"/runs": self.send_runs})

    def do_POST(self) -> None:
        self.answer({"/look": self.send_look, "/sample": self.send_sample})

    def answer(self, rooms: dict[str, Callable[[], None]]) -> None:
        """Do what the path asks for, or say in a sentence why not."""
        self.begun, self.unread = False, True
        try:
            self.admit()
            path = self.path.split("?")[0]
            if path not in rooms:
                raise Refused(404, "there is nothing here by that name.")
            rooms[path]()
        except Refused as refused:
            self.fail(refused.status, str(refused))
        except (ConnectionError, TimeoutError):
            raise  # nobody is there to be told
        except (ValueError, OSError) as error:  # as on the command line: the user's to mend
            self.fail(200, str(error))  # as an answer: nothing was wrong with how it was asked
        except Exception as error:  # ours to mend, and no reason to go down
            traceback.print_exc()
            self.fail(500, f"this went wrong: {str(error)[:300] or type(error).__name__}")

    def admit(self) -> None:
        """Refused: whoever asks does not mean this server, or is a page from elsewhere."""
        hosts, origins = self.headers.get_all("Host", []), self.headers.get_all("Origin", [])
        if len(hosts) != 1 or hosts[0].lower() not in self.server.hosts:
            raise Refused(403, "this server answers to its address on this machine alone.")
        own = {f"http://{host}" for host in self.server.hosts}
        if not own.issuperset(origins):
            raise Refused(403, "this server answers to its own page alone.")

    def body(self) -> dict:
        """The JSON object that was sent. Refused: it is none, or too large."""
        if self.headers.get("Content-Type", "").split(";")[0].strip() != "application/json":
            raise Refused(415, "the body must be application/json.")
        size = self.headers.get("Content-Length", "")
        if not (size.isascii() and size.isdigit()):
            raise Refused(411, "the length of the body must be given.")
        if len(size) > 9 or int(size) > BODY:
            raise Refused(413, f"the body may have {BODY:,} bytes, and not more.")
        try:
            content, self.unread = self.rfile.read(int(size)), False
            body = json.loads(content)
        except (ValueError, RecursionError):
            raise Refused(400, "the body is not JSON.") from None
        if not isinstance(body, dict):
            raise Refused(400, "the body must be a JSON object.")
        return body

    @contextmanager
    def place(self) -> Iterator[None]:
        """Held while the server works for this request. Refused: all places are taken."""
        if not self.server.places.acquire(blocking=False):
            raise Refused(503, "too much is asked for at the same time; try again in a moment.")
        try:
            yield
        finally:
            self.server.places.release()

    def send_file(self) -> None:
        path = self.path.split("?")[0]
        self.send(200, FILES[path][1] + "; charset=utf-8", self.server.files[path])

    def send_runs(self) -> None:
        args = self.server.shelf.args
        begin = {name: getattr(args, name) for name in ("temperature", "top_k", "top_p", "seed")}
        limits = {"prompt": PROMPT, "tokens": TOKENS}
        self.send_json(200, {"runs": self.server.shelf.offered(), "begin": begin, "limits": limits})

    def send_look(self) -> None:
        """What a run makes of a beginning (inside.look), and what there is to say of the run."""
        asked = self.body()
        name, prompt = text_of(asked, "run", 1000), text_of(asked, "prompt", PROMPT)
        picture = text_of(asked, "picture", 100)
        how = {name: number_of(asked, name) for name in ("temperature", "top_k", "top_p")}

        def work() -> dict:
            run = self.open(name)
            config = run.config
            found = look(run.model, run.tokenizer, config["model"], config["separated"], prompt,
                         picture, **how)
            num, length = sample.defaults(config["kind"], config["block_size"])
            return found | {
                "parameters": sum(p.numel() for p in run.model.parameters()),
                "block_size": config["block_size"], "kind": config["kind"],
                "val_loss": run.val_loss, "num": min(num, 10), "length": length,
            }

        with self.place():
            self.send_json(200, self.server.compute(work))

    def send_sample(self) -> None:
        """Samples as sample.py draws them, a line of JSON a token."""
        asked = self.body()
        name, prompt = text_of(asked, "run", 1000), text_of(asked, "prompt", PROMPT)
        how = {name: number_of(asked, name)
               for name in ("temperature", "top_k", "top_p", "seed")}
        num, length = number_of(asked, "num"), number_of(asked, "length")
        if num * length > TOKENS:
            raise Refused(422, f"{num} samples of {length} tokens are more than {TOKENS:,} tokens.")
        counts: list[int] = []

        def begin() -> Iterator[tuple[int, str | None]]:
            run = self.open(name)
            return sample.stream(run.model, run.tokenizer, prompt, num, length,
                                 run.config["separated"], counts=counts, **how)

        with self.place():
            pieces = self.server.compute(begin)
            try:
                self.stream(pieces, counts)
            finally:
                self.server.compute(pieces.close)

    def stream(self, pieces: Iterator[tuple[int, str | None]], counts: list[int]) -> None:
        """Send what comes as it comes. ConnectionError: nobody listens any more."""
        began = time.perf_counter()
        while True:
            piece = self.server.compute(next, pieces, None)
            if not self.begun:  # only now, for the first one may say that the prompt cannot be read
                self.begin(200, "application/x-ndjson; charset=utf-8")
            if piece is None:
                break
            self.send_line({"sample": piece[0], "text": piece[1]})
        seconds = time.perf_counter() - began
        self.send_line({"tokens": sum(counts), "seconds": round(seconds, 3)})

    def open(self, name: str) -> Loaded:
        try:
            return self.server.shelf.open(name)
        except KeyError:
            raise Refused(404, "there is no run of that name.") from None

    def begin(self, status: int, kind: str, size: int | None = None) -> None:
        self.begun = True
        self.send_response(status)
        for name, value in HEADERS.items():
            self.send_header(name, value)
        self.send_header("Content-Type", kind)
        if size is not None:
            self.send_header("Content-Length", str(size))
        self.end_headers()

    def send(self, status: int, kind: str, content: bytes) -> None:
        self.begin(status, kind, len(content))
        if self.command != "HEAD":
            self.wfile.write(content)

    def send_json(self, status: int, value: dict) -> None:
        self.send(status, "application/json", json.dumps(value, allow_nan=False).encode())

    def send_line(self, value: dict) -> None:
        self.wfile.write(json.dumps(value).encode() + b"\n")

    def fail(self, status: int, sentence: str) -> None:
        """Say what is wrong; in the middle of a sample as its last line."""
        if self.begun:
            return self.send_line({"error": sentence})
        self.send_json(status, {"error": sentence})
        if self.unread:
            self.drain()

    def drain(self) -> None:
        """Take in what is still on its way: over that a socket is reset, and the answer lost."""
        self.connection.shutdown(socket.SHUT_WR)
        left, end = 20 * BODY, time.monotonic() + DRAIN
        while left > 0 and (seconds := end - time.monotonic()) > 0:
            self.connection.settimeout(min(seconds, 0.5))
            part = self.connection.recv(BODY)
            left -= len(part) or left

    def send_error(self, code, message=None, explain=None) -> None:
        """What the standard library says of a request that is none: without a page of HTML."""
        self.close_connection = True
        self.send_json(code, {"error": str(message or self.responses.get(code, ("?",))[0])})

    def version_string(self) -> str:
        return "rungs"

    def log_message(self, *what) -> None:
        pass  # the terminal is for what goes wrong here, not for who asked


def text_of(asked: dict, name: str, most: int) -> str:
    """A text that was sent, '' if not. Refused: it is none, or longer than `most` characters."""
    value = asked.get(name, "")
    if not isinstance(value, str):
        raise Refused(422, f"{name} must be a text.")
    if len(value) > most:
        raise Refused(422, f"{name} may have {most:,} characters, and has {len(value):,}.")
    return value


def number_of(asked: dict, name: str) -> int | float:
    """A number that was sent, within its bounds; not sent, it is 1, or 0 for top_k and seed."""
    least, most = BOUNDS[name]
    whole = name not in ("temperature", "top_p")
    value = asked.get(name, 0 if least == 0 and whole else 1)
    kinds = int if whole else (int, float)
    if isinstance(value, bool) or not isinstance(value, kinds) or not least <= value <= most:
        kind = "whole number" if whole else "number"
        raise Refused(422, f"{name} must be a {kind} from {least} to {most}.")
    return value


def make_server(shelf: Shelf, port: int | None) -> Server:
    """At that port, or None: at the first that is free. ValueError: there is none."""
    for number in PORTS if port is None else [port]:
        try:
            return Server(shelf, number)
        except OSError as error:
            if error.errno not in (errno.EADDRINUSE, errno.EACCES):
                raise
    if port is not None:
        raise ValueError(f"port {port} is taken, or not yours to take; choose another --port, or "
                         "leave it out.")
    raise ValueError(f"the ports {PORTS[0]} to {PORTS[-1]} are all taken; choose one by --port.")


def main(args: argparse.Namespace) -> None:
    """Serve the page until Ctrl-C. args: of sample.py. ValueError: no run, or no port."""
    server = make_server(Shelf(args), args.port)
    count = len(server.shelf.known)
    sample.say(f"{count} {'run' if count == 1 else 'runs'} to play with at "
               f"http://127.0.0.1:{server.server_port}/   (Ctrl-C ends it)")
    try:
        server.serve_forever()
    except KeyboardInterrupt:
        sample.say("stopped.")
    finally:
        server.close()
