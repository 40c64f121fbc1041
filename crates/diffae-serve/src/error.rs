//! Errors of this crate, and the responses that they become.

use std::net::SocketAddr;

use axum::Json;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use diffae_infer::one_sentence;
use serde_json::json;

/// A result with this crate's [`Error`].
pub type Result<T> = std::result::Result<T, Error>;

/// A failure of the server, or of a request.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The address cannot be listened on.
    #[error("cannot listen on {address}")]
    Listen {
        /// The address.
        address: SocketAddr,
        /// The cause.
        #[source]
        source: std::io::Error,
    },
    /// The server stopped for an error of the system.
    #[error("the server failed")]
    System(#[source] std::io::Error),
    /// Anyone who reaches the machine could use the server.
    #[error(
        "{address} is reachable from other machines, which needs a token (--token) of {min_chars} characters or more"
    )]
    TokenMissing {
        /// The address.
        address: SocketAddr,
        /// The minimum length of a token.
        min_chars: usize,
    },
    /// The model's pictures cannot be shown as they are.
    #[error(
        "the page shows pictures of bytes in gray or color, and those of this model are others, of shape {shape:?}"
    )]
    NotShown {
        /// Channels, and sides.
        shape: Vec<usize>,
    },
    /// The request comes without the token, or with another.
    #[error("the token is missing or wrong")]
    Unauthorized,
    /// The request comes from a page of another site.
    #[error("requests of other sites are refused: {what} is {got}")]
    ForeignSite {
        /// The header.
        what: &'static str,
        /// The value of the header.
        got: String,
    },
    /// The body of a request is not understood.
    #[error("{problem}")]
    Request {
        /// The problem, in a sentence.
        problem: String,
    },
    /// The server has a fault, which its log shows.
    #[error("the request failed for a fault of the server; its log has the details")]
    Fault,
    /// A picture has more pixels than the server takes.
    #[error("the picture has {width} by {height} pixels, more than {max} in all; make it smaller")]
    TooManyPixels {
        /// The width of the picture.
        width: u32,
        /// The height of the picture.
        height: u32,
        /// The maximum number of pixels.
        max: u64,
    },
    /// Codes are not there, or not any more.
    #[error("there are no codes {id}, or they have expired; upload the picture again")]
    UnknownCodes {
        /// The id.
        id: String,
    },
    /// A picture of the model is not there.
    #[error("there is no face {idx}; the model has {count}")]
    UnknownFace {
        /// The number of the face.
        idx: usize,
        /// The number of faces.
        count: usize,
    },
    /// A newer request of the same client has taken the place of this one, or its client has left.
    #[error("a newer request has taken the place of this one")]
    Superseded,
    /// Too many requests wait.
    #[error("the server is busy; try again in a moment")]
    Busy,
    /// The server is about to stop.
    #[error("the server is stopping")]
    Stopping,
    /// A picture cannot be read or written.
    #[error(transparent)]
    Picture(#[from] diffae_data::Error),
    /// The model cannot do what was asked.
    #[error(transparent)]
    Model(diffae_infer::Error),
}

impl From<diffae_infer::Error> for Error {
    fn from(error: diffae_infer::Error) -> Self {
        match error {
            diffae_infer::Error::Cancelled => Self::Superseded,
            error => Self::Model(error),
        }
    }
}

impl Error {
    fn status(&self) -> StatusCode {
        match self {
            Self::Listen { .. }
            | Self::System(_)
            | Self::TokenMissing { .. }
            | Self::NotShown { .. }
            | Self::Fault
            | Self::Model(diffae_infer::Error::Tensor { .. }) => StatusCode::INTERNAL_SERVER_ERROR,
            Self::Unauthorized => StatusCode::UNAUTHORIZED,
            Self::ForeignSite { .. } => StatusCode::FORBIDDEN,
            Self::Request { .. } | Self::Picture(_) => StatusCode::BAD_REQUEST,
            Self::TooManyPixels { .. } => StatusCode::PAYLOAD_TOO_LARGE,
            Self::UnknownCodes { .. } | Self::UnknownFace { .. } => StatusCode::NOT_FOUND,
            Self::Superseded => StatusCode::CONFLICT,
            Self::Busy | Self::Stopping => StatusCode::SERVICE_UNAVAILABLE,
            Self::Model(_) => StatusCode::UNPROCESSABLE_ENTITY,
        }
    }
}

impl IntoResponse for Error {
    fn into_response(self) -> Response {
        let mut response = (self.status(), Json(json!({ "error": one_sentence(&self) }))).into_response();
        if matches!(self, Self::Busy) {
            response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from_static("1"));
        }
        response
    }
}
