//! Arguments of the commands that make pictures and codes.

use std::ops::Range;
use std::path::PathBuf;

use clap::{Args, ValueEnum};
use diffae_infer::Resume;

use super::{BatchArgs, DecodingArgs, ForceArgs, InversionArgs, ModelArgs, OutArgs, PictureArgs, RandomArgs, positive};

/// Pictures and codes on the command line.
#[derive(Debug, Args)]
pub(crate) struct CodesArgs {
    /// Picture files, folders, .safetensors files that hold x [N, C, H, W] in [-1, 1], or codes as `encode` writes them:
    /// FILE.safetensors, or FILE.safetensors:CHOICE for a part, by names, numbers or ranges such as 3..7
    #[arg(required = true)]
    pub(crate) input: Vec<PathBuf>,
}

/// Whether an interrupted run is gone on with.
#[derive(Debug, Clone, Args)]
pub(crate) struct ResumeArgs {
    /// Go on with what an interrupted run of the same command has kept; without it, that is done only if all settings agree,
    /// and not with --force
    #[arg(long)]
    resume: bool,
}

impl ResumeArgs {
    /// What to do with what is kept.
    pub(crate) fn mode(&self, force: &ForceArgs) -> Resume {
        match (self.resume, force.force) {
            (true, _) => Resume::Demanded,
            (false, true) => Resume::Never,
            (false, false) => Resume::IfSame,
        }
    }
}

/// Whether a script reads what is printed.
#[derive(Debug, Clone, Args)]
pub(crate) struct JsonArgs {
    /// Print what was written, and how, as JSON
    #[arg(long)]
    pub(crate) json: bool,
}

/// Numbers of pictures that follow each other.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct IndexRange(pub(crate) Range<u64>);

#[derive(Debug, Args)]
pub(crate) struct EncodeArgs {
    #[command(flatten)]
    pub(crate) model: ModelArgs,
    #[command(flatten)]
    pub(crate) pictures: PictureArgs,
    #[command(flatten)]
    pub(crate) out: OutArgs,
    /// Steps of the inversion
    #[arg(long, default_value_t = 250, value_name = "N", value_parser = positive)]
    pub(crate) steps: usize,
    /// Leave x_T out: much faster
    #[arg(long)]
    pub(crate) semantic_only: bool,
    #[command(flatten)]
    pub(crate) batch: BatchArgs,
    #[command(flatten)]
    pub(crate) resume: ResumeArgs,
    #[command(flatten)]
    pub(crate) json: JsonArgs,
}

/// Where the x_T of decoded pictures comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum XTerminalChoice {
    /// From the codes
    Stored,
    /// Fresh noise
    Random,
    /// All zero
    Zero,
}

#[derive(Debug, Args)]
pub(crate) struct DecodeArgs {
    #[command(flatten)]
    pub(crate) model: ModelArgs,
    /// What `diffae encode` wrote; FILE.safetensors:CHOICE takes a part of it, by names, numbers or ranges such as 3..7
    pub(crate) codes: PathBuf,
    #[command(flatten)]
    pub(crate) out: OutArgs,
    #[command(flatten)]
    pub(crate) decoding: DecodingArgs,
    /// Where x_T comes from
    #[arg(long = "x-t", value_enum, default_value_t = XTerminalChoice::Stored)]
    pub(crate) x_t: XTerminalChoice,
    #[command(flatten)]
    pub(crate) random: RandomArgs,
    /// Noise added at each step: 0 none, 1 as much as DDPM
    #[arg(long, default_value_t = 0.)]
    pub(crate) eta: f64,
    /// Decode codes that another model made
    #[arg(long)]
    pub(crate) any_model: bool,
    #[command(flatten)]
    pub(crate) batch: BatchArgs,
    #[command(flatten)]
    pub(crate) resume: ResumeArgs,
    #[command(flatten)]
    pub(crate) json: JsonArgs,
}

/// Where the x_T of a reconstruction comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum ReconstructionNoise {
    /// From the picture: near-exact
    Inverted,
    /// Fresh noise: shows what z_sem holds
    Random,
}

#[derive(Debug, Args)]
pub(crate) struct ReconstructArgs {
    #[command(flatten)]
    pub(crate) model: ModelArgs,
    #[command(flatten)]
    pub(crate) pictures: PictureArgs,
    #[command(flatten)]
    pub(crate) out: OutArgs,
    #[command(flatten)]
    pub(crate) decoding: DecodingArgs,
    #[command(flatten)]
    pub(crate) inversion: InversionArgs,
    /// Where x_T comes from
    #[arg(long = "x-t", value_enum, default_value_t = ReconstructionNoise::Inverted)]
    pub(crate) x_t: ReconstructionNoise,
    #[command(flatten)]
    pub(crate) random: RandomArgs,
    /// Print the measures as JSON
    #[arg(long)]
    pub(crate) json: bool,
    #[command(flatten)]
    pub(crate) batch: BatchArgs,
    #[command(flatten)]
    pub(crate) resume: ResumeArgs,
}

#[derive(Debug, Args)]
pub(crate) struct InterpolateArgs {
    #[command(flatten)]
    pub(crate) model: ModelArgs,
    #[command(flatten)]
    pub(crate) input: CodesArgs,
    /// FILE.png for a strip, FILE.gif for an animation, or a folder for single frames
    #[command(flatten)]
    pub(crate) out: OutArgs,
    /// Frames from each picture to the next, both of these included
    #[arg(long, default_value_t = 10, value_name = "N", value_parser = positive)]
    pub(crate) frames: usize,
    /// Frames a second of a .gif, up to 50 [default: 10]
    #[arg(long, value_name = "F")]
    pub(crate) fps: Option<f64>,
    /// Come back to the first picture, whose frame does not come again; two pictures make a way there and back
    #[arg(long = "loop")]
    pub(crate) is_loop: bool,
    #[command(flatten)]
    pub(crate) decoding: DecodingArgs,
    #[command(flatten)]
    pub(crate) inversion: InversionArgs,
    #[command(flatten)]
    pub(crate) batch: BatchArgs,
    #[command(flatten)]
    pub(crate) json: JsonArgs,
}

#[derive(Debug, Args)]
pub(crate) struct EditArgs {
    #[command(flatten)]
    pub(crate) model: ModelArgs,
    /// Picture files, folders, .safetensors files that hold x [N, C, H, W] in [-1, 1], or codes as `encode` writes them:
    /// FILE.safetensors, or FILE.safetensors:CHOICE for a part, by names, numbers or ranges such as 3..7
    #[arg(required_unless_present = "list")]
    pub(crate) input: Vec<PathBuf>,
    /// Where to write
    #[arg(long, short, value_name = "PATH", required_unless_present = "list")]
    pub(crate) out: Option<PathBuf>,
    #[command(flatten)]
    pub(crate) force: ForceArgs,
    /// Print the names of the model's attributes, and the strengths that go the whole way where the model knows them
    #[arg(long, conflicts_with_all = ["input", "out", "attribute", "strength", "strengths"])]
    pub(crate) list: bool,
    /// Print the names, or what was written, as JSON
    #[arg(long)]
    pub(crate) json: bool,
    /// Name or number of an attribute, or NAME=STRENGTH; may be repeated to move several at once. Case, spaces, underscores
    /// and hyphens do not matter
    #[arg(long, short, required_unless_present = "list", value_name = "NAME[=STRENGTH]")]
    pub(crate) attribute: Vec<String>,
    /// How far to go; negative takes the attribute away [default: the whole way if the model knows it, as --list shows, or
    /// 0.3]. Several attributes, or one with a strength of its own, go this many times as far
    #[arg(long, short, allow_negative_numbers = true)]
    pub(crate) strength: Option<f64>,
    /// Several values of --strength, such as -0.3,0,0.3: adds a strip for each picture
    #[arg(long, value_delimiter = ',', allow_hyphen_values = true, conflicts_with = "strength")]
    pub(crate) strengths: Vec<f64>,
    /// Decoding steps
    #[arg(long, default_value_t = 100, value_name = "N", value_parser = positive)]
    pub(crate) steps: usize,
    /// Give back what decoding loses, so that what the edit leaves alone stays as it is; decodes once more
    #[arg(long)]
    pub(crate) keep_residual: bool,
    #[command(flatten)]
    pub(crate) inversion: InversionArgs,
    #[command(flatten)]
    pub(crate) batch: BatchArgs,
    #[command(flatten)]
    pub(crate) resume: ResumeArgs,
}

#[derive(Debug, Args)]
pub(crate) struct SampleArgs {
    #[command(flatten)]
    pub(crate) model: ModelArgs,
    #[command(flatten)]
    pub(crate) out: OutArgs,
    /// Number of pictures
    #[arg(short = 'n', long = "count", default_value_t = 16, value_name = "N", value_parser = positive)]
    pub(crate) count: usize,
    /// Only these pictures of the seed, by numbers from 0: one, several with commas, or ranges such as 30..40, of which 40 is
    /// not a part
    #[arg(long, value_name = "NUMBERS", value_delimiter = ',', value_parser = index_range, conflicts_with = "count")]
    pub(crate) index: Vec<IndexRange>,
    #[command(flatten)]
    pub(crate) decoding: DecodingArgs,
    /// Steps of the latent diffusion
    #[arg(long, default_value_t = 200, value_name = "N", value_parser = positive)]
    pub(crate) latent_steps: usize,
    #[command(flatten)]
    pub(crate) random: RandomArgs,
    /// Noise added at each decoding step: 0 none, 1 as much as DDPM
    #[arg(long, default_value_t = 0.)]
    pub(crate) eta: f64,
    /// Take z_T [N, D] and x_T [N, C, H, W] from this .safetensors file; what it lacks is drawn
    #[arg(long, value_name = "FILE", conflicts_with = "count")]
    pub(crate) noise: Option<PathBuf>,
    #[command(flatten)]
    pub(crate) batch: BatchArgs,
    #[command(flatten)]
    pub(crate) resume: ResumeArgs,
    #[command(flatten)]
    pub(crate) json: JsonArgs,
}

#[derive(Debug, Args)]
pub(crate) struct VariationsArgs {
    #[command(flatten)]
    pub(crate) model: ModelArgs,
    #[command(flatten)]
    pub(crate) input: CodesArgs,
    #[command(flatten)]
    pub(crate) out: OutArgs,
    /// Variations of each picture
    #[arg(short = 'n', long = "count", default_value_t = 8, value_name = "N", value_parser = positive)]
    pub(crate) count: usize,
    /// Only these of the variations, by numbers from 0: one, several with commas, or ranges such as 3..5, of which 5 is not a
    /// part
    #[arg(long, value_name = "NUMBERS", value_delimiter = ',', value_parser = index_range)]
    pub(crate) index: Vec<IndexRange>,
    #[command(flatten)]
    pub(crate) decoding: DecodingArgs,
    #[command(flatten)]
    pub(crate) random: RandomArgs,
    #[command(flatten)]
    pub(crate) batch: BatchArgs,
    #[command(flatten)]
    pub(crate) resume: ResumeArgs,
    #[command(flatten)]
    pub(crate) json: JsonArgs,
}

/// Most pictures of one range: more are a slip of the keyboard.
const MOST_OF_A_RANGE: u64 = 1 << 24;

fn index_range(text: &str) -> Result<IndexRange, String> {
    let number = |text: &str| text.trim().parse::<u64>().map_err(|error| error.to_string());
    let range = match text.split_once("..") {
        Some((start, end)) => number(start)?..number(end)?,
        None => number(text).and_then(|start| Ok(start..start.checked_add(1).ok_or("too large")?))?,
    };
    match range.end.checked_sub(range.start) {
        Some(1..=MOST_OF_A_RANGE) => Ok(IndexRange(range)),
        Some(0) | None => Err("the range is empty".to_owned()),
        Some(_) => Err("the range is too long".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_and_ranges_are_read() {
        assert_eq!(index_range("37"), Ok(IndexRange(37..38)));
        assert_eq!(index_range("30..40"), Ok(IndexRange(30..40)));
        for bad in ["", "x", "-1", "4..4", "5..4", "1..", "0..99999999999", "18446744073709551615"] {
            assert!(index_range(bad).is_err(), "{bad}");
        }
    }
}
