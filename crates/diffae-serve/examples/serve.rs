//! Serves the built-in model with its faces, on a port that is free, until the program is ended.
//!
//! ```sh
//! cargo run --release --package diffae-serve --example serve
//! ```

#![expect(clippy::print_stdout, reason = "the address is the result")]

use std::error::Error;
use std::net::{Ipv4Addr, SocketAddr};

use diffae_infer::{Pipeline, built_in_pictures};
use diffae_serve::{ServeOptions, Server};

fn main() -> Result<(), Box<dyn Error>> {
    let address = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
    let options = ServeOptions { address, faces: built_in_pictures()?, ..ServeOptions::default() };
    let server = Server::bind(Pipeline::from_built_in()?, options)?;
    println!("http://{}/", server.address());
    server.run(|| false)?;
    Ok(())
}
