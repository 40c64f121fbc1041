//! `diffae serve [--model MODEL] [--port 7860]`

use std::net::SocketAddr;
use std::path::Path;

use anyhow::Result;
use diffae_infer::{BUILT_IN_MODEL, ModelSource, Pipeline, PipelineSettings, built_in_pictures};
use diffae_serve::{ServeOptions, Server};

use crate::args::{GlobalArgs, ServeArgs};
use crate::interrupt::{catch_interrupts, interrupted};
use crate::output::say;
use crate::session::load_options;

/// Serves the page until Ctrl-C.
pub(crate) fn run(global: &GlobalArgs, args: &ServeArgs) -> Result<()> {
    catch_interrupts();
    let options = load_options(global, &args.hints)?;
    let model = ModelSource::open(&args.model, &options.hints)?.build(&options)?;
    let is_built_in = args.model == Path::new(BUILT_IN_MODEL);
    let settings = PipelineSettings::of_model(model.config());
    let server = Server::bind(
        Pipeline::new(model),
        ServeOptions {
            address: SocketAddr::new(args.host, args.port),
            token: args.token.clone(),
            model: args.model.display().to_string(),
            faces: if is_built_in { built_in_pictures()? } else { vec![] },
            settings,
        },
    )?;
    let query = if args.token.is_some() { "?token=TOKEN" } else { "" };
    say(&format!("serving {} at http://{}/{query} (end with Ctrl-C)", args.model.display(), server.address()))?;
    Ok(server.run(interrupted)?)
}
