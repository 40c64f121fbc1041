//! Drawing styles: definition, the part that is shown, and named attributes.

use anyhow::{Context, Result, anyhow};
use serde_json::{Map, Value, json};

use super::Drawing;

/// Colors behind the head, those of `DiceBear`'s own pages.
pub(super) const BACKGROUNDS: [&str; 5] = ["b6e3f4", "c0aede", "d1d4f9", "ffd5dc", "ffdfbf"];

/// A drawing style.
#[derive(Debug)]
pub(super) struct Style {
    pub(super) name: &'static str,
    /// Enlargement of the drawing about its center, so that eyes and mouth are several pixels high at 64.
    pub(super) scale: f64,
    pub(super) attributes: &'static [Attribute],
    /// License of the style, as its definition names it.
    pub(super) licence: &'static str,
    definition: &'static str,
}

/// An attribute that a face has or lacks.
#[derive(Debug)]
pub(super) struct Attribute {
    pub(super) name: &'static str,
    /// Option of the style that decides about the attribute.
    pub(super) option: Choice,
    /// Values of the option with which the attribute is present.
    pub(super) present: &'static [&'static str],
    /// Forced values of the option in the two pictures of a pair: without and with. `None` leaves the part out.
    pub(super) pair: (Option<&'static str>, &'static str),
}

/// One of the two pictures of a pair.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Side {
    Without,
    With,
}

/// An option of a style.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Choice {
    /// The variant of a part, if the part is drawn at all.
    Part(&'static str),
    /// A color.
    Color(&'static str),
}

impl Attribute {
    /// Returns whether a face of these options has the attribute.
    pub(super) fn is_of(&self, options: &Map<String, Value>) -> bool {
        self.option.of(options).is_some_and(|value| self.present.contains(&value))
    }

    /// Returns the options that force the attribute to be there or not.
    pub(super) fn forced(&self, side: Side) -> Map<String, Value> {
        let value = if side == Side::With { Some(self.pair.1) } else { self.pair.0 };
        let options = match (self.option, value) {
            (Choice::Part(part), Some(variant)) => {
                json!({ format!("{part}Variant"): variant, format!("{part}Probability"): 100 })
            }
            (Choice::Part(part), None) => json!({ format!("{part}Probability"): 0 }),
            (Choice::Color(color), value) => json!({ format!("{color}Color"): value }),
        };
        options.as_object().cloned().unwrap_or_default()
    }
}

impl Choice {
    /// Returns the value among the options of a face; `None` for a part that is not drawn.
    pub(super) fn of(self, options: &Map<String, Value>) -> Option<&str> {
        match self {
            Self::Part(part) => options.get(&format!("{part}Variant"))?.as_str(),
            Self::Color(color) => {
                options.get(&format!("{color}Color"))?.get(0)?.as_str().map(|it| it.trim_start_matches('#'))
            }
        }
    }
}

impl Style {
    pub(super) fn of(drawing: Drawing) -> &'static Self {
        match drawing {
            Drawing::ToonHead => &TOON_HEAD,
            Drawing::OpenPeeps => &OPEN_PEEPS,
            Drawing::PixelArt => &PIXEL_ART,
        }
    }

    /// Returns the attribute of that name.
    pub(super) fn attribute(&self, name: &str) -> Result<&'static Attribute> {
        self.attributes.iter().find(|attribute| attribute.name == name).ok_or_else(|| {
            let names: Vec<&str> = self.attributes.iter().map(|attribute| attribute.name).collect();
            anyhow!("{} has no attribute {name}; it has {}", self.name, names.join(", "))
        })
    }

    pub(super) fn definition(&self) -> Result<dicebear_core::Style> {
        dicebear_core::Style::from_str(self.definition).map_err(|error| anyhow!("style {}: {error}", self.name))
    }

    /// Returns a page about the author and the terms of use, to lay beside the pictures.
    pub(super) fn licence_page(&self) -> Result<String> {
        let definition: Value = serde_json::from_str(self.definition).context("the style is no JSON")?;
        let text =
            |at: &str| definition.pointer(at).and_then(Value::as_str).context("the style does not name its licence");
        Ok(format!(
            "The pictures are drawn by the style \"{}\" of DiceBear (https://www.dicebear.com).\n\n\
             {}.\n\n\
             Artist: {}, {}\n\
             Source: {}, {}\n\
             Licence: {}, {}\n\n\
             Changes: parts and colors are drawn at random, the head is enlarged, and the drawing is rendered to pixels.\n",
            self.name,
            text("/meta/license/text")?,
            text("/meta/creator/name")?,
            text("/meta/creator/url")?,
            text("/meta/source/name")?,
            text("/meta/source/url")?,
            text("/meta/license/name")?,
            text("/meta/license/url")?,
        ))
    }
}

const fn part(
    name: &'static str,
    part: &'static str,
    present: &'static [&'static str],
    pair: (Option<&'static str>, &'static str),
) -> Attribute {
    Attribute { name, option: Choice::Part(part), present, pair }
}

const fn color(
    name: &'static str,
    color: &'static str,
    present: &'static [&'static str],
    pair: (&'static str, &'static str),
) -> Attribute {
    Attribute { name, option: Choice::Color(color), present, pair: (Some(pair.0), pair.1) }
}

static TOON_HEAD: Style = Style {
    name: "toon-head",
    scale: 1.35,
    licence: "CC BY 4.0",
    definition: dicebear_styles::TOON_HEAD,
    attributes: &[
        part("Smiling", "mouth", &["laugh", "smile"], (Some("sad"), "laugh")),
        part("Mouth_Open", "mouth", &["agape", "angry", "laugh"], (Some("smile"), "agape")),
        part("Eyes_Closed", "eyes", &["bow", "humble"], (Some("happy"), "humble")),
        part("Winking", "eyes", &["wink"], (Some("happy"), "wink")),
        part("Beard", "beard", &["fullBeard", "longBeard"], (None, "fullBeard")),
        part("Mustache", "beard", &["chinMoustache", "moustacheTwirl"], (None, "moustacheTwirl")),
        part("Long_Hair", "rearHair", &["longStraight", "longWavy"], (None, "longStraight")),
        part("Bun", "hair", &["bun"], (Some("sideComed"), "bun")),
        part("Spiky_Hair", "hair", &["spiky"], (Some("sideComed"), "spiky")),
        color("Dark_Hair", "hair", &["2c1b18"], ("724133", "2c1b18")),
        color("Blond_Hair", "hair", &["d6b370"], ("724133", "d6b370")),
        color("Dark_Skin", "skin", &["5c3829"], ("c68e7a", "5c3829")),
        color("Light_Skin", "skin", &["f1c3a5"], ("c68e7a", "f1c3a5")),
    ],
};

static OPEN_PEEPS: Style = Style {
    name: "open-peeps",
    scale: 1.35,
    licence: "CC0 1.0",
    definition: dicebear_styles::OPEN_PEEPS,
    attributes: &[
        part(
            "Smiling",
            "expression",
            &["cute", "lovingGrin1", "lovingGrin2", "smile", "smileBig", "smileLOL", "smileTeethGap"],
            (Some("serious"), "smileBig"),
        ),
        part(
            "Eyeglasses",
            "accessories",
            &["glasses", "glasses2", "glasses3", "glasses4", "glasses5", "sunglasses", "sunglasses2"],
            (None, "glasses2"),
        ),
        part("Sunglasses", "accessories", &["sunglasses", "sunglasses2"], (None, "sunglasses")),
        part("Beard", "facialHair", &["full", "full2", "full3", "full4"], (None, "full")),
        part("Wearing_Mask", "mask", &["medicalMask", "respirator"], (None, "medicalMask")),
        part("Wearing_Hat", "head", &["hatBeanie", "hatHip"], (Some("short1"), "hatBeanie")),
        part("Bald", "head", &["noHair1", "noHair2", "noHair3"], (Some("short1"), "noHair1")),
        part("Long_Hair", "head", &["long", "longAfro", "longBangs", "longCurly"], (Some("short1"), "long")),
        color("Dark_Skin", "skin", &["694d3d"], ("d08b5b", "694d3d")),
        color("Light_Skin", "skin", &["ffdbb4"], ("d08b5b", "ffdbb4")),
    ],
};

static PIXEL_ART: Style = Style {
    name: "pixel-art",
    scale: 1.0,
    licence: "CC0 1.0",
    definition: dicebear_styles::PIXEL_ART,
    attributes: &[
        part(
            "Smiling",
            "mouth",
            &[
                "happy01", "happy02", "happy03", "happy04", "happy05", "happy06", "happy07", "happy08", "happy09",
                "happy10", "happy11", "happy12", "happy13",
            ],
            (Some("sad01"), "happy01"),
        ),
        part(
            "Eyeglasses",
            "glasses",
            &[
                "dark01", "dark02", "dark03", "dark04", "dark05", "dark06", "dark07", "light01", "light02", "light03",
                "light04", "light05", "light06", "light07",
            ],
            (None, "dark01"),
        ),
        part(
            "Beard",
            "beard",
            &["variant01", "variant02", "variant03", "variant04", "variant05", "variant06", "variant07", "variant08"],
            (None, "variant01"),
        ),
        part(
            "Wearing_Hat",
            "hat",
            &[
                "variant01",
                "variant02",
                "variant03",
                "variant04",
                "variant05",
                "variant06",
                "variant07",
                "variant08",
                "variant09",
                "variant10",
            ],
            (None, "variant01"),
        ),
        part(
            "Long_Hair",
            "hair",
            &[
                "long01", "long02", "long03", "long04", "long05", "long06", "long07", "long08", "long09", "long10",
                "long11", "long12", "long13", "long14", "long15", "long16", "long17", "long18", "long19", "long20",
                "long21",
            ],
            (Some("short01"), "long01"),
        ),
        color("Dark_Skin", "skin", &["8d5524"], ("cb9e6e", "8d5524")),
        color("Light_Skin", "skin", &["ffdbac"], ("cb9e6e", "ffdbac")),
    ],
};
