//! A page with sliders and a JSON API for a Diffusion Autoencoder.
//!
//! [`Server::bind`] listens; [`Server::run`] serves until it is told to stop. All pictures are computed by one thread, from a
//! bounded queue; the newest request of a client ends its older ones between two steps. `GET /api/openapi.json` describes the
//! API.
//!
//! ```no_run
//! use diffae_infer::Pipeline;
//! use diffae_serve::{ServeOptions, Server};
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let server = Server::bind(Pipeline::from_built_in()?, ServeOptions::default())?;
//! println!("http://{}/", server.address());
//! server.run(|| false)?;
//! # Ok(())
//! # }
//! ```

mod api;
mod error;
mod events;
mod guard;
mod store;
mod worker;

use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener};
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use diffae_infer::{Pipeline, PipelineSettings};
use image::RgbImage;

pub use error::{Error, Result};

use crate::api::App;
use crate::events::Events;
use crate::guard::Guard;
use crate::worker::Worker;

/// Minimum length of a token.
const MIN_TOKEN_CHARS: usize = 12;
/// Time between two looks at whether to stop.
const STOP_INTERVAL: Duration = Duration::from_millis(50);

/// Settings of a [`Server`].
#[derive(Debug, Clone)]
pub struct ServeOptions {
    /// Address and port to listen on; port 0 for any that is free. Default: 127.0.0.1, 7860. Other addresses than those of
    /// this machine need a token.
    pub address: SocketAddr,
    /// Token that every request must bring: in `Authorization: Bearer`, in the query (`?token=`), or in the cookie that such
    /// an address leaves. Default: none.
    pub token: Option<String>,
    /// Name of the model, for the page. Default: the built-in model's.
    pub model: String,
    /// Pictures to try, each with its name. Default: none.
    pub faces: Vec<(String, RgbImage)>,
    /// Settings of encoding and decoding. Default: [`PipelineSettings::DEFAULT`].
    pub settings: PipelineSettings,
}

impl Default for ServeOptions {
    fn default() -> Self {
        Self {
            address: SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 7860),
            token: None,
            model: "toonheads".to_owned(),
            faces: vec![],
            settings: PipelineSettings::DEFAULT,
        }
    }
}

/// A server that listens.
pub struct Server {
    listener: TcpListener,
    address: SocketAddr,
    router: Router,
    worker: Worker,
}

impl std::fmt::Debug for Server {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Server").field("address", &self.address).finish_non_exhaustive()
    }
}

impl Server {
    /// Listens on the address of the options.
    ///
    /// # Errors
    /// [`Error::TokenMissing`] if the address is not of this machine alone and there is no token; [`Error::NotShown`] for a model
    /// of volumes, of other than one or three channels, or of values in a window; [`Error::Listen`].
    pub fn bind(pipeline: Pipeline, options: ServeOptions) -> Result<Self> {
        let ServeOptions { address, token, model, faces, settings } = options;
        let is_loopback = address.ip().is_loopback();
        let is_short = token.as_ref().is_none_or(|token| token.chars().count() < MIN_TOKEN_CHARS);
        if is_short && (!is_loopback || token.is_some()) {
            return Err(Error::TokenMissing { address, min_chars: MIN_TOKEN_CHARS });
        }
        let format = pipeline.model().picture_format();
        if !format.is_plain() {
            return Err(Error::NotShown { shape: format.shape.dims() });
        }
        let listener = TcpListener::bind(address).map_err(|source| Error::Listen { address, source })?;
        let address = listener.local_addr().map_err(Error::System)?;
        let events = Events::new();
        let worker = Worker::start(pipeline.clone(), events.clone());
        let app = App {
            pipeline,
            settings,
            model: model.into(),
            faces: faces.into(),
            worker: worker.clone(),
            events,
            store: Arc::default(),
        };
        let router = api::router(app, Guard { token: token.map(Into::into), is_loopback });
        Ok(Self { listener, address, router, worker })
    }

    /// Returns the address, with the port that was free.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Serves until `should_stop` returns true; requests that run are then ended at their next step.
    ///
    /// # Errors
    /// [`Error::System`].
    pub fn run(self, should_stop: impl Fn() -> bool + Send + 'static) -> Result<()> {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
        let Self { listener, router, worker, .. } = self;
        let stopped = async move {
            while !should_stop() {
                tokio::time::sleep(STOP_INTERVAL).await;
            }
            worker.stop();
        };
        runtime.map_err(Error::System)?.block_on(async {
            listener.set_nonblocking(true).map_err(Error::System)?;
            let listener = tokio::net::TcpListener::from_std(listener).map_err(Error::System)?;
            axum::serve(listener, router).with_graceful_shutdown(stopped).await.map_err(Error::System)
        })
    }
}
