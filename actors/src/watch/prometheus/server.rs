//! The smallest server that Prometheus can scrape: one thread that waits for nobody.
//!
//! Every connection is a small state that is looked at in turns (non-blocking event loop). None can hold up another or
//! the end, whether it is silent, slow or never closes (slowloris); none may take longer than [`PATIENCE`], and of more
//! than [`MAX_CLIENTS`] those go first that have been asked nothing for the longest time.

use std::io::{self, ErrorKind, Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::time::{Duration, Instant};

use super::http::{MAX_HEAD_BYTES, Status};
use crate::process::background::Background;

/// Connections at once.
const MAX_CLIENTS: usize = 64;
/// What a client may have sent besides its request and is read, so that it gets to see the answer, in bytes.
const MAX_REST_BYTES: usize = 1 << 20;
/// How long a client may take from its connection to its end.
const PATIENCE: Duration = Duration::from_secs(2);
/// How often the thread looks for a client.
const POLL: Duration = Duration::from_millis(50);
/// How often it looks at those that it has.
const POLL_CLIENTS: Duration = Duration::from_millis(2);

/// Answers the clients of `listener` with what `body` gives at the time, until the answer is dropped, which takes no
/// longer than an answer to a client.
///
/// # Errors
/// If no thread can be started.
pub(super) fn start(listener: TcpListener, body: impl Fn() -> String + Send + 'static) -> io::Result<Background> {
    listener.set_nonblocking(true)?;
    Background::start("mlomae-metrics", move |ended| {
        let mut clients = Clients::default();
        while !ended.within(if clients.0.is_empty() { POLL } else { POLL_CLIENTS }) {
            clients.accept(&listener);
            clients.serve(&body);
        }
    })
}

/// The connections, in the order in which they came.
#[derive(Default)]
struct Clients(Vec<Client>);

impl Clients {
    /// Takes in who waits, as many as there is room for in one turn; makes room where there is none.
    fn accept(&mut self, listener: &TcpListener) {
        for _ in 0..MAX_CLIENTS {
            // What goes wrong with a client is the client's concern.
            let Ok((stream, _)) = listener.accept() else { return };
            if stream.set_nonblocking(true).is_err() {
                continue;
            }
            if self.0.len() == MAX_CLIENTS {
                let idle = self.0.iter().position(|client| matches!(client.exchange, Exchange::Reading));
                self.0.remove(idle.unwrap_or(0));
            }
            let (bytes, deadline) = (Vec::new(), Instant::now() + PATIENCE);
            let mut client = Client { stream, exchange: Exchange::Reading, bytes, deadline };
            // Most have sent their request already; they need not be kept.
            if client.read_request().is_some() {
                self.0.push(client);
            }
        }
    }

    fn serve(&mut self, body: &dyn Fn() -> String) {
        self.0.retain_mut(|client| client.go_on(body).is_some());
    }
}

/// One connection.
struct Client {
    stream: TcpStream,
    exchange: Exchange,
    /// What has been read, or what is left to be written.
    bytes: Vec<u8>,
    deadline: Instant,
}

/// How far the exchange with a client is.
enum Exchange {
    /// The head of the request is not whole.
    Reading,
    /// The request is known and not answered.
    Asked(Status),
    /// Bytes of the answer are left.
    Writing,
    /// All is said. Closing over unread bytes would take the answer back, so so many are read before.
    Draining(usize),
}

/// None when the connection is over.
type Over = Option<()>;

impl Client {
    /// Does what can be done without waiting.
    fn go_on(&mut self, body: &dyn Fn() -> String) -> Over {
        if Instant::now() > self.deadline {
            // Who began a request hears why there is no answer, if there is room to say it.
            if matches!(self.exchange, Exchange::Reading) && !self.bytes.is_empty() {
                let _ = self.stream.write(Status::Timeout.answer(String::new).as_bytes());
            }
            return None;
        }
        if matches!(self.exchange, Exchange::Reading) {
            self.read_request()?;
        }
        if let Exchange::Asked(status) = self.exchange {
            self.bytes = status.answer(body).into_bytes();
            self.exchange = Exchange::Writing;
        }
        if matches!(self.exchange, Exchange::Writing) {
            self.write_answer()?;
        }
        match self.exchange {
            Exchange::Draining(num_read) => self.drain(num_read),
            _ => Some(()),
        }
    }

    fn read_request(&mut self) -> Over {
        let mut buffer = [0; 4096];
        while self.bytes.len() <= MAX_HEAD_BYTES {
            let Some(num_read) = tried(self.stream.read(&mut buffer))? else { return Some(()) };
            if num_read == 0 {
                return None;
            }
            self.bytes.extend_from_slice(&buffer[..num_read]);
            if let Some(status) = Status::of(&self.bytes) {
                self.exchange = Exchange::Asked(status);
                return Some(());
            }
        }
        // More than a head is long, of empty lines alone.
        self.exchange = Exchange::Asked(Status::HeadTooLarge);
        Some(())
    }

    fn write_answer(&mut self) -> Over {
        while !self.bytes.is_empty() {
            let Some(num_written) = tried(self.stream.write(&self.bytes))? else { return Some(()) };
            if num_written == 0 {
                return None;
            }
            self.bytes.drain(..num_written);
        }
        self.stream.shutdown(Shutdown::Write).ok()?;
        self.exchange = Exchange::Draining(0);
        Some(())
    }

    fn drain(&mut self, mut num_read: usize) -> Over {
        let mut buffer = [0; 4096];
        while num_read < MAX_REST_BYTES {
            match tried(self.stream.read(&mut buffer))? {
                Some(0) => return None,
                Some(num) => num_read += num,
                None => {
                    self.exchange = Exchange::Draining(num_read);
                    return Some(());
                }
            }
        }
        None
    }
}

/// What an operation answered, or that it would have to wait; none if the connection is broken.
fn tried<T>(result: io::Result<T>) -> Option<Option<T>> {
    match result {
        Ok(value) => Some(Some(value)),
        Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => Some(None),
        Err(_) => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::SocketAddr;
    use std::thread;

    const GET: &[u8] = b"GET /metrics HTTP/1.1\r\nHost: localhost\r\n\r\n";

    fn server_of(body: impl Fn() -> String + Send + 'static) -> (SocketAddr, Background) {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let address = listener.local_addr().expect("an address");
        (address, start(listener, body).expect("a thread"))
    }

    fn server() -> (SocketAddr, Background) {
        server_of(|| "a 1\n".to_owned())
    }

    fn ask(address: SocketAddr, request: &[u8]) -> String {
        let mut client = TcpStream::connect(address).expect("connects");
        client.set_read_timeout(Some(Duration::from_secs(20))).expect("a time");
        client.write_all(request).expect("sent");
        let mut answer = String::new();
        client.read_to_string(&mut answer).expect("answered");
        answer
    }

    fn seconds_of(work: impl FnOnce()) -> f64 {
        let begin = Instant::now();
        work();
        begin.elapsed().as_secs_f64()
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
        assert!(ask(address, &[b"GET /".to_vec(), vec![b'x'; 100 << 10]].concat()).starts_with("HTTP/1.1 414 "));
        assert!(ask(address, &b"\r\n".repeat(50 << 10)).starts_with("HTTP/1.1 431 "));
        assert!(ask(address, b"GET / HTTP/1.1\r\n\r\n").starts_with("HTTP/1.1 404 "));
        let body = [b"POST /metrics HTTP/1.1\r\nContent-Length: 500000\r\n\r\n".to_vec(), vec![b'x'; 500_000]].concat();
        assert!(ask(address, &body).starts_with("HTTP/1.1 405 "));
        // The first of two requests at once is answered, and the connection closed.
        assert_eq!(ask(address, &GET.repeat(2)).matches("HTTP/1.1 200 OK").count(), 1);
        assert!(ask(address, b"HEAD /metrics HTTP/1.0\r\n\r\n").ends_with("Connection: close\r\n\r\n"));
    }

    #[test]
    fn silent_and_slow_clients_hold_up_neither_others_nor_the_end() {
        let (address, server) = server();
        let connect = || TcpStream::connect(address).expect("connects");
        let mut silent: Vec<_> = (0..20).map(|_| connect()).collect();
        // Slow ones, of which each goes on a byte at a time.
        let slow: Vec<_> = (0..20).map(|_| connect()).collect();
        for round in 0..5 {
            slow.iter().for_each(|mut client| drop(client.write(&GET[round..=round])));
            let seconds = seconds_of(|| assert!(ask(address, GET).ends_with("a 1\n")));
            assert!(seconds < 1.5, "not after the others' time: {seconds} s");
        }
        let seconds = seconds_of(|| assert_eq!(silent[0].read(&mut [0]).expect("closed"), 0));
        assert!(seconds < 10.0, "{seconds} s");
        let mut answer = String::new();
        (&slow[0]).read_to_string(&mut answer).expect("told and closed");
        assert!(answer.starts_with("HTTP/1.1 408 "), "{answer}");
        let _silent: Vec<_> = (0..20).map(|_| connect()).collect();
        let seconds = seconds_of(|| drop(server));
        assert!(seconds < 1.0, "the end waits for nobody: {seconds} s");
        assert!(TcpStream::connect(address).is_err(), "nobody listens any more");
    }

    #[test]
    fn hundreds_of_idle_clients_leave_room_for_one_that_asks() {
        let (address, _server) = server();
        let mut idle = Vec::new();
        for number in 0..300 {
            idle.push(TcpStream::connect(address).expect("connects"));
            if number % 50 == 0 {
                assert!(ask(address, GET).ends_with("a 1\n"), "beside {number}");
            }
        }
        let answers: Vec<_> = (0..8).map(|_| thread::spawn(move || ask(address, GET))).collect();
        for answer in answers {
            assert!(answer.join().expect("answered").ends_with("a 1\n"));
        }
    }

    #[test]
    fn who_does_not_read_the_answer_is_dropped() {
        let (address, server) = server_of(|| "a 1\n".repeat(8 << 20));
        let mut deaf = TcpStream::connect(address).expect("connects");
        deaf.write_all(GET).expect("sent");
        thread::sleep(Duration::from_millis(300));
        assert!(ask(address, b"GET / HTTP/1.1\r\n\r\n").starts_with("HTTP/1.1 404 "), "the other is in nobody's way");
        let seconds = seconds_of(|| drop(server));
        assert!(seconds < 1.0, "{seconds} s");
        let mut answer = Vec::new();
        // Cut off: with an error or without, but not whole.
        let _ = deaf.read_to_end(&mut answer);
        assert!(answer.len() < 32 << 20, "{}", answer.len());
    }
}
