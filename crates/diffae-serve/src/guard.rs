//! Access: the token, and requests of pages of other sites.

use std::sync::Arc;

use axum::extract::{Request, State};
use axum::http::{HeaderMap, HeaderValue, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};

use crate::error::{Error, Result};

/// Name of the cookie and of the query parameter with the token.
const TOKEN: &str = "token";

/// Conditions on every request.
#[derive(Debug, Clone)]
pub(crate) struct Guard {
    /// Token that requests must bring, if any.
    pub(crate) token: Option<Arc<str>>,
    /// Whether only this machine can reach the server: then only its own names may be asked for, so that no page of
    /// another site gets here by a name that it makes point to this machine.
    pub(crate) is_loopback: bool,
}

/// Lets a request pass, or answers why not. A token in the address is kept in a cookie, for what the page asks for.
pub(crate) async fn check(State(guard): State<Guard>, request: Request, next: Next) -> Response {
    if let Err(error) = guard.check(request.headers(), request.uri().query()) {
        return error.into_response();
    }
    let token = query_token(request.uri().query()).map(str::to_owned);
    let mut response = next.run(request).await;
    let cookie = token.map(|token| format!("{TOKEN}={token}; HttpOnly; SameSite=Strict; Path=/"));
    if let Some(cookie) = cookie.and_then(|cookie| HeaderValue::from_str(&cookie).ok()) {
        response.headers_mut().insert(header::SET_COOKIE, cookie);
    }
    response
}

impl Guard {
    fn check(&self, headers: &HeaderMap, query: Option<&str>) -> Result<()> {
        let text = |name| headers.get(name).and_then(|value| value.to_str().ok());
        let host = text(header::HOST).unwrap_or_default();
        if self.is_loopback && !is_loopback_name(host) {
            return Err(Error::ForeignSite { what: "Host", got: host.to_owned() });
        }
        if let Some(origin) = text(header::ORIGIN)
            && origin.split_once("://").is_none_or(|(_, authority)| authority != host)
        {
            return Err(Error::ForeignSite { what: "Origin", got: origin.to_owned() });
        }
        let Some(token) = &self.token else { return Ok(()) };
        let bearer = text(header::AUTHORIZATION).and_then(|value| value.strip_prefix("Bearer "));
        let cookies = text(header::COOKIE).unwrap_or_default().split(';');
        let cookie = cookies.filter_map(|cookie| cookie.trim().split_once('=')).find(|(name, _)| *name == TOKEN);
        let given = bearer.or(query_token(query)).or(cookie.map(|(_, value)| value)).unwrap_or_default();
        // Hashes are compared in constant time.
        let is_it = blake3::hash(given.as_bytes()) == blake3::hash(token.as_bytes());
        if is_it { Ok(()) } else { Err(Error::Unauthorized) }
    }
}

fn query_token(query: Option<&str>) -> Option<&str> {
    query?.split('&').filter_map(|pair| pair.split_once('=')).find(|(name, _)| *name == TOKEN).map(|(_, value)| value)
}

/// Returns whether a host, with or without its port, is a name of this machine.
fn is_loopback_name(host: &str) -> bool {
    let name = match host.strip_prefix('[') {
        Some(rest) => rest.split(']').next().unwrap_or_default(),
        None => host.split(':').next().unwrap_or_default(),
    };
    name.eq_ignore_ascii_case("localhost")
        || name.parse::<std::net::IpAddr>().is_ok_and(|address| address.is_loopback())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(pairs: &[(header::HeaderName, &str)]) -> HeaderMap {
        pairs.iter().map(|(name, value)| (name.clone(), HeaderValue::from_str(value).unwrap())).collect()
    }

    #[test]
    fn pages_of_other_sites_are_refused() {
        let guard = Guard { token: None, is_loopback: true };
        let check = |pairs: &[_]| guard.check(&headers(pairs), None);
        for host in ["localhost:7860", "127.0.0.1:7860", "[::1]:7860", "LOCALHOST"] {
            assert!(check(&[(header::HOST, host)]).is_ok(), "{host}");
        }
        for host in ["example.org", "localhost.example.org:7860", "10.0.0.1", ""] {
            assert!(matches!(check(&[(header::HOST, host)]), Err(Error::ForeignSite { what: "Host", .. })), "{host}");
        }
        let from = |origin| check(&[(header::HOST, "localhost:7860"), (header::ORIGIN, origin)]);
        assert!(from("http://localhost:7860").is_ok());
        for origin in ["http://example.org", "http://localhost:1", "null"] {
            assert!(matches!(from(origin), Err(Error::ForeignSite { what: "Origin", .. })), "{origin}");
        }
    }

    #[test]
    fn the_token_comes_in_a_header_the_address_or_a_cookie() {
        let guard = Guard { token: Some("a-long-secret".into()), is_loopback: false };
        let host = (header::HOST, "example.org");
        let check = |more: &[_], query| guard.check(&headers(&[std::slice::from_ref(&host), more].concat()), query);
        assert!(matches!(check(&[], None), Err(Error::Unauthorized)));
        assert!(check(&[(header::AUTHORIZATION, "Bearer a-long-secret")], None).is_ok());
        assert!(check(&[(header::COOKIE, "a=b; token=a-long-secret")], None).is_ok());
        assert!(check(&[], Some("x=1&token=a-long-secret")).is_ok());
        for wrong in ["token=", "token=a-long-secre", "tokens=a-long-secret"] {
            assert!(check(&[], Some(wrong)).is_err(), "{wrong}");
        }
    }
}
