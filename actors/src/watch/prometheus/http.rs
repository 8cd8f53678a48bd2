//! As much of HTTP as Prometheus needs: one request, judged by its head, and the answer to it.

/// The only path that is served.
pub const PATH: &str = "/metrics";
/// Longest request line and header fields together, in bytes.
pub(super) const MAX_HEAD_BYTES: usize = 8 << 10;

/// What a request deserves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Status {
    Ok,
    /// The same without the body: a HEAD.
    OkHead,
    BadRequest,
    NotFound,
    MethodNotAllowed,
    Timeout,
    UriTooLong,
    HeadTooLarge,
    VersionNotSupported,
}

impl Status {
    /// By the bytes that have come so far; none while the head is neither whole nor too long.
    pub(super) fn of(bytes: &[u8]) -> Option<Self> {
        // Empty lines before a request are to be ignored (RFC 9112, 2.2).
        let Some(begin) = bytes.iter().position(|byte| !matches!(byte, b'\r' | b'\n')) else {
            return (bytes.len() > MAX_HEAD_BYTES).then_some(Self::HeadTooLarge);
        };
        let bytes = &bytes[begin..];
        match bytes.windows(4).position(|bytes| bytes == b"\r\n\r\n") {
            Some(end) if end <= MAX_HEAD_BYTES => Some(Self::of_head(&bytes[..end])),
            None if bytes.len() <= MAX_HEAD_BYTES => None,
            _ if bytes.iter().take(MAX_HEAD_BYTES).all(|byte| *byte != b'\n') => Some(Self::UriTooLong),
            _ => Some(Self::HeadTooLarge),
        }
    }

    fn of_head(head: &[u8]) -> Self {
        let line = head.split(|byte| *byte == b'\r').next().and_then(|line| std::str::from_utf8(line).ok());
        let mut words = line.unwrap_or_default().split(' ');
        let (Some(method), Some(target), Some(version), None) =
            (words.next(), words.next(), words.next(), words.next())
        else {
            return Self::BadRequest;
        };
        let is_method = !method.is_empty() && method.bytes().all(|byte| byte.is_ascii_alphabetic() || byte == b'-');
        if !is_method || target.is_empty() {
            return Self::BadRequest;
        }
        match version {
            "HTTP/1.1" | "HTTP/1.0" => {}
            _ if is_version(version) => return Self::VersionNotSupported,
            _ => return Self::BadRequest,
        }
        // A target may name the server too, as those for proxies do.
        let path = target.strip_prefix("http://").map_or(target, |rest| &rest[rest.find('/').unwrap_or(rest.len())..]);
        match method {
            _ if path.split('?').next() != Some(PATH) => Self::NotFound,
            "GET" => Self::Ok,
            "HEAD" => Self::OkHead,
            _ => Self::MethodNotAllowed,
        }
    }

    /// The whole answer; `body` gives the metrics and is called only if they are wanted.
    pub(super) fn answer(self, body: impl Fn() -> String) -> String {
        const TEXT: &str = "text/plain; charset=utf-8";
        let (line, kind, body) = match self {
            Self::Ok | Self::OkHead => ("200 OK", "text/plain; version=0.0.4; charset=utf-8", body()),
            Self::BadRequest => ("400 Bad Request", TEXT, "not an HTTP/1.1 request\n".to_owned()),
            Self::NotFound => ("404 Not Found", TEXT, format!("metrics are at {PATH}\n")),
            Self::MethodNotAllowed => {
                ("405 Method Not Allowed\r\nAllow: GET, HEAD", TEXT, "only GET and HEAD\n".to_owned())
            }
            Self::Timeout => ("408 Request Timeout", TEXT, "the request did not come in time\n".to_owned()),
            Self::UriTooLong => {
                ("414 URI Too Long", TEXT, format!("a request line has at most {MAX_HEAD_BYTES} bytes\n"))
            }
            Self::HeadTooLarge => (
                "431 Request Header Fields Too Large",
                TEXT,
                format!("a request has at most {MAX_HEAD_BYTES} bytes of header\n"),
            ),
            Self::VersionNotSupported => ("505 HTTP Version Not Supported", TEXT, "only HTTP/1.1\n".to_owned()),
        };
        let head = format!(
            "HTTP/1.1 {line}\r\nContent-Type: {kind}\r\nContent-Length: {}\r\nConnection: close\r\n\r\n",
            body.len()
        );
        if self == Self::OkHead { head } else { head + &body }
    }
}

/// Whether `word` is of the form `HTTP/2.0`.
fn is_version(word: &str) -> bool {
    let Some(number) = word.strip_prefix("HTTP/") else { return false };
    !number.is_empty() && number.bytes().all(|byte| byte.is_ascii_digit() || byte == b'.')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_get_of_the_metrics_is_answered_with_them() {
        for (line, status) in [
            ("GET /metrics HTTP/1.1", Status::Ok),
            ("GET /metrics HTTP/1.0", Status::Ok),
            ("GET /metrics?a=b HTTP/1.1", Status::Ok),
            ("GET http://localhost:9464/metrics HTTP/1.1", Status::Ok),
            ("\r\n\r\nGET /metrics HTTP/1.1", Status::Ok),
            ("HEAD /metrics HTTP/1.1", Status::OkHead),
            ("POST /metrics HTTP/1.1", Status::MethodNotAllowed),
            ("OPTIONS /metrics HTTP/1.1", Status::MethodNotAllowed),
            ("get /metrics HTTP/1.1", Status::MethodNotAllowed),
            ("GET / HTTP/1.1", Status::NotFound),
            ("POST / HTTP/1.1", Status::NotFound),
            ("OPTIONS * HTTP/1.1", Status::NotFound),
            ("GET /metricsx HTTP/1.1", Status::NotFound),
            ("GET /metrics/../etc HTTP/1.1", Status::NotFound),
            ("GET http://localhost HTTP/1.1", Status::NotFound),
            ("GET /metrics HTTP/2.0", Status::VersionNotSupported),
            ("GET /metrics HTTP/3", Status::VersionNotSupported),
            ("GET /metrics HTTP/", Status::BadRequest),
            ("GET /metrics HTTPS/1.1", Status::BadRequest),
            ("GET  /metrics HTTP/1.1", Status::BadRequest),
            (" /metrics HTTP/1.1", Status::BadRequest),
            ("GET /metrics", Status::BadRequest),
            ("\u{16}\u{3}\u{1}", Status::BadRequest),
            ("\u{16}\u{3}\u{1} /metrics HTTP/1.1", Status::BadRequest),
        ] {
            assert_eq!(Status::of(format!("{line}\r\nHost: a\r\n\r\nbody").as_bytes()), Some(status), "{line:?}");
        }
        assert_eq!(Status::of(b"\xff\xfe /metrics HTTP/1.1\r\n\r\n"), Some(Status::BadRequest));
        let answer = Status::Ok.answer(|| "a 1\n".to_owned());
        assert!(answer.starts_with("HTTP/1.1 200 OK\r\n"), "{answer}");
        assert!(answer.ends_with("Content-Length: 4\r\nConnection: close\r\n\r\na 1\n"), "{answer}");
        let head = Status::OkHead.answer(|| "a 1\n".to_owned());
        assert_eq!(format!("{head}a 1\n"), answer, "the same head, and no body");
        assert!(Status::MethodNotAllowed.answer(String::new).contains("\r\nAllow: GET, HEAD\r\n"));
    }

    #[test]
    fn a_head_is_waited_for_until_it_is_too_long() {
        let whole = b"GET /metrics HTTP/1.1\r\nHost: localhost\r\n\r\n";
        for len in 0..whole.len() {
            assert_eq!(Status::of(&whole[..len]), None, "{len} bytes");
        }
        assert_eq!(Status::of(whole), Some(Status::Ok));
        let long =
            |begin: &str, end: &str| Status::of(format!("{begin}{}{end}", "x".repeat(MAX_HEAD_BYTES)).as_bytes());
        assert_eq!(long("GET /metrics HTTP/1.1\r\nX: ", ""), Some(Status::HeadTooLarge));
        assert_eq!(long("GET /metrics HTTP/1.1\r\nX: ", "\r\n\r\n"), Some(Status::HeadTooLarge));
        assert_eq!(long("GET /", ""), Some(Status::UriTooLong));
        assert_eq!(long("GET /", " HTTP/1.1\r\n\r\n"), Some(Status::UriTooLong));
        assert_eq!(Status::of("\r\n".repeat(MAX_HEAD_BYTES).as_bytes()), Some(Status::HeadTooLarge));
    }
}
