//! One request over HTTP to a server of this machine.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::time::Duration;

/// Time after which a server that is silent is taken for dead.
const TIMEOUT: Duration = Duration::from_mins(3);

/// Returns status and body of the response; `headers` are lines that each end with CR LF.
pub(crate) fn request(
    address: &str,
    (method, path): (&str, &str),
    headers: &str,
    body: &[u8],
) -> std::io::Result<(u16, Vec<u8>)> {
    let mut stream = TcpStream::connect(address)?;
    stream.set_read_timeout(Some(TIMEOUT))?;
    let length = body.len();
    let head = format!(
        "{method} {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\nContent-Length: {length}\r\n{headers}\r\n"
    );
    stream.write_all(&[head.as_bytes(), body].concat())?;
    let mut response = BufReader::new(stream);
    let mut line = String::new();
    response.read_line(&mut line)?;
    let status = line.split(' ').nth(1).and_then(|status| status.parse().ok()).unwrap_or_default();
    let mut length = None;
    loop {
        line.clear();
        response.read_line(&mut line)?;
        let Some((name, value)) = line.trim_end().split_once(':') else { break };
        if name.eq_ignore_ascii_case("content-length") {
            length = value.trim().parse().ok();
        }
    }
    let mut body = vec![];
    match length {
        Some(length) => response.take(length).read_to_end(&mut body)?,
        None => response.read_to_end(&mut body)?,
    };
    Ok((status, body))
}
