//! The smallest HTTP/1.1 server that Prometheus can scrape: one thread, one client at a time, one
//! answer to a connection.

use std::io::{self, Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

/// The only path that is served.
pub const PATH: &str = "/metrics";

/// Longest request line and header fields together.
const MAX_HEAD_BYTES: usize = 8 << 10;
/// What a refused client may have sent besides and is read, so that it gets to see the refusal.
const MAX_REST_BYTES: usize = 1 << 20;
/// How long a client may take from its connection to its end.
const PATIENCE: Duration = Duration::from_secs(2);
/// How often the thread looks for a client and, while it serves one, for its own end.
const POLL: Duration = Duration::from_millis(50);

/// Answers requests until it is dropped.
#[derive(Debug)]
pub struct MetricsServer {
    ended: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl MetricsServer {
    /// Starts to answer the clients of `listener` with what `body` says at the time.
    ///
    /// # Errors
    /// If no thread can be started.
    pub fn start(listener: TcpListener, body: impl Fn() -> String + Send + 'static) -> io::Result<Self> {
        // An accept that waits could not be ended.
        listener.set_nonblocking(true)?;
        let ended = Arc::<AtomicBool>::default();
        let server = Server { body, ended: Arc::clone(&ended) };
        let serve = move || {
            while !server.ended.load(Ordering::Acquire) {
                match listener.accept() {
                    // What goes wrong with a client is the client's concern.
                    Ok((client, _)) => drop(server.answer(client)),
                    Err(_) => thread::park_timeout(POLL),
                }
            }
        };
        let thread = thread::Builder::new().name("mlomae-metrics".to_owned()).spawn(serve)?;
        Ok(Self { ended, thread: Some(thread) })
    }
}

impl Drop for MetricsServer {
    fn drop(&mut self) {
        self.ended.store(true, Ordering::Release);
        if let Some(thread) = self.thread.take() {
            thread.thread().unpark();
            // A server that panicked has nothing further to say; the run is none the worse.
            let _ = thread.join();
        }
    }
}

struct Server<B> {
    body: B,
    ended: Arc<AtomicBool>,
}

impl<B: Fn() -> String> Server<B> {
    fn answer(&self, mut client: TcpStream) -> io::Result<()> {
        let deadline = Instant::now() + PATIENCE;
        // On some systems it has inherited the listener's mode.
        client.set_nonblocking(false)?;
        client.set_read_timeout(Some(POLL))?;
        client.set_write_timeout(Some(POLL))?;
        let mut head = Vec::new();
        let status = loop {
            if let Some(end) = head.windows(4).position(|bytes| bytes == b"\r\n\r\n") {
                break if end > MAX_HEAD_BYTES { Status::HeadTooLarge } else { Status::of(&head[..end]) };
            }
            if head.len() > MAX_HEAD_BYTES {
                break Status::HeadTooLarge;
            }
            if self.read(&mut client, &mut head, deadline)? == 0 {
                return Ok(());
            }
        };
        let answer = status.answer(&self.body);
        self.write(&mut client, answer.as_bytes(), deadline)?;
        client.shutdown(Shutdown::Write)?;
        if status != Status::Ok {
            // Closing over unread bytes would take the answer back.
            let mut rest = Vec::new();
            while rest.len() < MAX_REST_BYTES && self.read(&mut client, &mut rest, deadline)? > 0 {}
        }
        Ok(())
    }

    /// Appends what there is to `bytes`; 0 at the end of the stream.
    fn read(&self, client: &mut TcpStream, bytes: &mut Vec<u8>, deadline: Instant) -> io::Result<usize> {
        let mut buffer = [0; 4096];
        let num_read = self.within(deadline, || client.read(&mut buffer))?;
        bytes.extend_from_slice(&buffer[..num_read]);
        Ok(num_read)
    }

    fn write(&self, client: &mut TcpStream, mut bytes: &[u8], deadline: Instant) -> io::Result<()> {
        while !bytes.is_empty() {
            match self.within(deadline, || client.write(bytes))? {
                0 => return Err(io::ErrorKind::WriteZero.into()),
                num_written => bytes = &bytes[num_written..],
            }
        }
        Ok(())
    }

    /// Repeats an operation that times out until the deadline or the server's end.
    fn within<T>(&self, deadline: Instant, mut operation: impl FnMut() -> io::Result<T>) -> io::Result<T> {
        loop {
            if self.ended.load(Ordering::Acquire) || Instant::now() > deadline {
                return Err(io::ErrorKind::TimedOut.into());
            }
            match operation() {
                Err(error)
                    if matches!(
                        error.kind(),
                        io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut | io::ErrorKind::Interrupted
                    ) => {}
                result => return result,
            }
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Status {
    Ok,
    BadRequest,
    NotFound,
    MethodNotAllowed,
    HeadTooLarge,
}

impl Status {
    /// What a request deserves by its request line.
    fn of(head: &[u8]) -> Self {
        let line = head.split(|byte| *byte == b'\r').next().and_then(|line| std::str::from_utf8(line).ok());
        let mut words = line.unwrap_or_default().split(' ');
        let (Some(method), Some(target), Some("HTTP/1.1" | "HTTP/1.0"), None) =
            (words.next(), words.next(), words.next(), words.next())
        else {
            return Self::BadRequest;
        };
        if target.split('?').next() != Some(PATH) {
            Self::NotFound
        } else if method == "GET" {
            Self::Ok
        } else {
            Self::MethodNotAllowed
        }
    }

    fn answer(self, body: impl Fn() -> String) -> String {
        const TEXT: &str = "text/plain; charset=utf-8";
        let (line, kind, body) = match self {
            Self::Ok => ("200 OK", "text/plain; version=0.0.4; charset=utf-8", body()),
            Self::BadRequest => ("400 Bad Request", TEXT, "not an HTTP/1.1 request\n".to_owned()),
            Self::NotFound => ("404 Not Found", TEXT, format!("metrics are at {PATH}\n")),
            Self::MethodNotAllowed => ("405 Method Not Allowed\r\nAllow: GET", TEXT, "only GET\n".to_owned()),
            Self::HeadTooLarge => (
                "431 Request Header Fields Too Large",
                TEXT,
                format!("a request has at most {MAX_HEAD_BYTES} bytes of header\n"),
            ),
        };
        format!(
            "HTTP/1.1 {line}\r\nContent-Type: {kind}\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{body}",
            body.len()
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn server() -> (std::net::SocketAddr, MetricsServer) {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let address = listener.local_addr().expect("an address");
        (address, MetricsServer::start(listener, || "a 1\n".to_owned()).expect("a thread"))
    }

    fn ask(address: std::net::SocketAddr, request: &[u8]) -> String {
        let mut client = TcpStream::connect(address).expect("connects");
        client.write_all(request).expect("sent");
        let mut answer = String::new();
        client.read_to_string(&mut answer).expect("answered");
        answer
    }

    #[test]
    fn only_a_get_of_the_metrics_is_answered_with_them() {
        for (line, status) in [
            ("GET /metrics HTTP/1.1", Status::Ok),
            ("GET /metrics?name=x HTTP/1.0", Status::Ok),
            ("POST /metrics HTTP/1.1", Status::MethodNotAllowed),
            ("HEAD /metrics HTTP/1.1", Status::MethodNotAllowed),
            ("GET / HTTP/1.1", Status::NotFound),
            ("GET /metricsx HTTP/1.1", Status::NotFound),
            ("GET /metrics/../etc HTTP/1.1", Status::NotFound),
            ("GET /metrics HTTP/2.0", Status::BadRequest),
            ("GET  /metrics HTTP/1.1", Status::BadRequest),
            ("GET /metrics", Status::BadRequest),
            ("", Status::BadRequest),
            ("\u{16}\u{3}\u{1}", Status::BadRequest),
        ] {
            assert_eq!(Status::of(format!("{line}\r\nHost: a").as_bytes()), status, "{line:?}");
        }
        assert_eq!(Status::of(b"\xff\xfe /metrics HTTP/1.1"), Status::BadRequest);
        let answer = Status::Ok.answer(|| "a 1\n".to_owned());
        assert!(
            answer.starts_with("HTTP/1.1 200 OK\r\n")
                && answer.ends_with("Content-Length: 4\r\nConnection: close\r\n\r\na 1\n")
        );
        assert!(Status::MethodNotAllowed.answer(String::new).contains("\r\nAllow: GET\r\n"));
    }

    #[test]
    fn a_request_may_come_in_pieces_but_not_without_end() {
        let (address, _server) = server();
        let mut client = TcpStream::connect(address).expect("connects");
        for piece in ["GET /met", "rics HTTP/1.1\r\nHost: a\r", "\n\r", "\n"] {
            client.write_all(piece.as_bytes()).expect("sent");
            thread::sleep(Duration::from_millis(10));
        }
        let mut answer = String::new();
        client.read_to_string(&mut answer).expect("answered");
        assert!(answer.ends_with("\r\n\r\na 1\n"), "{answer}");
        let long = [b"GET /metrics HTTP/1.1\r\nX: ".to_vec(), vec![b'x'; 100 << 10]].concat();
        assert!(ask(address, &long).starts_with("HTTP/1.1 431 "));
        assert!(ask(address, b"GET / HTTP/1.1\r\n\r\n").starts_with("HTTP/1.1 404 "));
    }

    #[test]
    fn silent_clients_are_let_go_and_hold_up_neither_others_nor_the_end() {
        let (address, server) = server();
        let mut silent = TcpStream::connect(address).expect("connects");
        assert!(ask(address, b"GET /metrics HTTP/1.1\r\n\r\n").ends_with("a 1\n"), "after the silent one's time");
        assert_eq!(silent.read(&mut [0]).expect("closed"), 0);
        let _silent = TcpStream::connect(address).expect("connects");
        drop(server);
        assert!(TcpStream::connect(address).is_err(), "nobody listens any more");
    }
}
