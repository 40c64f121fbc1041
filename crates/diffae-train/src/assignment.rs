//! Assignments of settings by their keys: `autoencoder.lr=2e-4`.

use crate::error::{Error, Result};

/// Applies `key=value` to an existing key.
pub(crate) fn assign(table: &mut toml::Table, assignment: &str) -> Result<()> {
    let Some((key, value)) = assignment.split_once('=') else {
        return Err(Error::NotAnAssignment { text: assignment.to_owned() });
    };
    let (key, value) = (key.trim(), value.trim());
    let parsed = toml::from_str::<toml::Table>(&format!("v = {value}")).ok().and_then(|mut table| table.remove("v"));
    let mut value = parsed.unwrap_or_else(|| toml::Value::String(value.to_owned()));
    let mut at = table;
    let mut parts = key.split('.').peekable();
    while let Some(part) = parts.next() {
        let hint = format!("there are {}", at.keys().cloned().collect::<Vec<_>>().join(", "));
        let unknown = || Error::UnknownKey { key: key.to_owned(), hint };
        let Some(entry) = at.get_mut(part) else { return Err(unknown()) };
        if parts.peek().is_none() {
            // 1 for 1.0 is what people write.
            if let (toml::Value::Float(_), toml::Value::Integer(whole)) = (&*entry, &value) {
                value = toml::Value::Float(*whole as f64);
            }
            *entry = value;
            return Ok(());
        }
        match entry {
            toml::Value::Table(inner) => at = inner,
            _ => return Err(unknown()),
        }
    }
    Ok(())
}
