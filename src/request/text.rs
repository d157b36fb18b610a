//! Values that a record stores in the grammar of their flags: `32g`, `0-3`, `8888:80/tcp`.
//!
//! A record that is written this way can be read by a person, and by earlier releases of gpurun, whose records contain
//! the flags as they were written on the command line.

use std::fmt::Display;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, de};

use crate::report::Report;

/// Implements serde for types with `Display` and `FromStr`.
macro_rules! stored_as_text {
    ($($type:ty),+ $(,)?) => { $(
        impl serde::Serialize for $type {
            fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.collect_str(self)
            }
        }

        impl<'de> serde::Deserialize<'de> for $type {
            fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                let text = std::borrow::Cow::<'de, str>::deserialize(deserializer)?;
                text.parse().map_err(serde::de::Error::custom)
            }
        }
    )+ };
}
pub(crate) use stored_as_text;

/// Reads an optional value, for which an empty text and `null` mean "not set".
pub(crate) fn optional<'de, D: Deserializer<'de>, T: FromStr<Err: Display>>(
    deserializer: D,
) -> Result<Option<T>, D::Error> {
    let text = Option::<String>::deserialize(deserializer)?.filter(|text| !text.is_empty());
    text.map(|text| text.parse().map_err(de::Error::custom)).transpose()
}

/// Reads a value whose default is stored as `null`.
pub(crate) fn or_default<'de, D: Deserializer<'de>, T: Deserialize<'de> + Default>(
    deserializer: D,
) -> Result<T, D::Error> {
    Ok(Option::<T>::deserialize(deserializer)?.unwrap_or_default())
}

/// Parses the value of a flag. An error names the flag and the text.
pub(crate) fn flag_value<T: FromStr>(flag: &str, text: &str) -> Result<T, Report>
where
    Report: From<T::Err>,
{
    text.parse().map_err(|error| Report::from(error).under(format!("`{flag} {text}` cannot be used")))
}
