//! A recipe as it is written: a text, and those that it extends. They are merged into one document in which every value still
//! knows its line: the texts are thought of as one behind the other, and a place is an offset into all of it. What they say for
//! one architecture only, in a table of its name, is merged into that then, or left out.

use std::fmt;
use std::path::{Path, PathBuf};

use serde::de::DeserializeOwned;
use toml::Spanned;
use toml::de::{DeTable, DeValue, Deserializer};

use super::RecipeError;
use crate::architecture::Architecture;

/// A text, and what it is called in errors.
#[derive(Debug, Clone)]
pub struct Text {
    /// The file, or the profile.
    pub origin: String,
    /// What is in it.
    pub content: String,
    /// Files that it names are looked for here.
    pub folder: Option<PathBuf>,
}

/// Texts, those that are extended first.
#[derive(Debug, Clone, Default)]
pub struct Written {
    texts: Vec<Text>,
    /// Each with the length of all before it in front, as spaces.
    padded: Vec<String>,
    architecture: Option<Architecture>,
}

/// A line of a text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    /// The file, or the profile.
    pub origin: String,
    /// Counted from one.
    pub line: usize,
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}, line {}", self.origin, self.line)
    }
}

impl Written {
    /// From the texts, those that are extended first.
    pub fn new(texts: Vec<Text>) -> Self {
        let mut before = 0;
        let mut padded = Vec::new();
        for text in &texts {
            padded.push(" ".repeat(before) + &text.content);
            before += text.content.len();
        }
        Written { texts, padded, architecture: None }
    }

    /// With what is said for this architecture in its place, and without what is said for others.
    pub fn built_for(self, architecture: Architecture) -> Self {
        Written { architecture: Some(architecture), ..self }
    }

    /// All of it.
    pub fn text(&self) -> String {
        self.texts.iter().map(|text| text.content.as_str()).collect()
    }

    /// What it says.
    pub fn read<T: DeserializeOwned>(&self) -> Result<T, RecipeError> {
        T::deserialize(Deserializer::from(self.merged()?)).map_err(|error| self.malformed(&error))
    }

    /// Where a value is written: the way to it, of keys and of places in lists.
    pub fn place(&self, way: &[impl AsRef<str>]) -> Place {
        self.locate(self.offset(way).unwrap_or(0)).1
    }

    /// The file that a value names, from the folder of the text that it is written in.
    pub fn resolve(&self, way: &[impl AsRef<str>], file: &Path) -> PathBuf {
        let (text, _) = self.locate(self.offset(way).unwrap_or(0));
        match text.and_then(|text| text.folder.as_ref()) {
            Some(folder) => folder.join(file),
            None => file.to_owned(),
        }
    }

    fn merged(&self) -> Result<Spanned<DeTable<'_>>, RecipeError> {
        let mut tables = self.padded.iter().map(|text| DeTable::parse(text).map_err(|error| self.malformed(&error)));
        let mut merged = tables.next().unwrap_or_else(|| Ok(Spanned::new(0..0, DeTable::new())))?;
        for table in tables {
            merge(merged.get_mut(), table?.into_inner(), Lists::Behind);
        }
        if let Some(chosen) = self.architecture {
            for known in Architecture::ALL {
                let own = self.take_own(merged.get_mut(), known)?;
                if known == chosen {
                    merge(merged.get_mut(), own, Lists::InFront);
                }
            }
        }
        Ok(merged)
    }

    /// What is said for one architecture only.
    fn take_own<'text>(
        &self,
        merged: &mut DeTable<'text>,
        architecture: Architecture,
    ) -> Result<DeTable<'text>, RecipeError> {
        const FOR_ALL: [&str; 2] = ["architecture", "extends"];
        let name = architecture.name();
        let own = match merged.get_mut(name).map(Spanned::get_mut) {
            Some(DeValue::Table(own)) => std::mem::take(own),
            // Whoever reads the rest refuses the name.
            _ => return Ok(DeTable::new()),
        };
        merged.remove(name);
        match own.keys().find(|key| FOR_ALL.contains(&key.get_ref().as_ref())) {
            Some(key) => {
                let message = format!("`{}` is not said for one architecture only", key.get_ref());
                Err(RecipeError::Malformed { place: self.locate(key.span().start).1, message })
            }
            None => Ok(own),
        }
    }

    fn malformed(&self, error: &toml::de::Error) -> RecipeError {
        let (_, place) = self.locate(error.span().map_or(0, |span| span.start));
        RecipeError::Malformed { place, message: error.message().lines().collect::<Vec<_>>().join(" ") }
    }

    fn locate(&self, offset: usize) -> (Option<&Text>, Place) {
        let mut within = offset;
        for (number, text) in self.texts.iter().enumerate() {
            if within < text.content.len() || number + 1 == self.texts.len() {
                let line = 1 + text.content.bytes().take(within).filter(|byte| *byte == b'\n').count();
                return (Some(text), Place { origin: text.origin.clone(), line });
            }
            within -= text.content.len();
        }
        (None, Place { origin: String::new(), line: 0 })
    }

    fn offset(&self, way: &[impl AsRef<str>]) -> Option<usize> {
        let merged = self.merged().ok()?;
        let (first, rest) = way.split_first()?;
        let (key, mut value) = merged.get_ref().get_key_value(first.as_ref())?;
        let mut at = key.span().start;
        for step in rest {
            match value.get_ref() {
                DeValue::Table(table) => {
                    let (key, next) = table.get_key_value(step.as_ref())?;
                    (at, value) = (key.span().start, next);
                }
                DeValue::Array(list) => {
                    value = list.get(step.as_ref().parse::<usize>().ok()?)?;
                    at = value.span().start;
                }
                _ => return None,
            }
        }
        Some(at)
    }
}

/// Where a list goes that is joined to another one.
#[derive(Clone, Copy)]
enum Lists {
    Behind,
    InFront,
}

/// Tables are merged key by key, lists are joined, and all else is said by who says it last.
fn merge<'text>(below: &mut DeTable<'text>, above: DeTable<'text>, lists: Lists) {
    for (key, value) in above {
        match (below.get_mut(key.get_ref().as_ref()).map(Spanned::get_mut), value) {
            (Some(DeValue::Table(below)), value) if value.get_ref().is_table() => {
                if let DeValue::Table(above) = value.into_inner() {
                    merge(below, above, lists);
                }
            }
            (Some(DeValue::Array(below)), value) if value.get_ref().is_array() => {
                if let DeValue::Array(above) = value.into_inner() {
                    let added = above.len();
                    above.into_iter().for_each(|item| below.push(item));
                    if let Lists::InFront = lists {
                        below.rotate_right(added);
                    }
                }
            }
            (_, value) => {
                below.remove(key.get_ref().as_ref());
                below.insert(key, value);
            }
        }
    }
}
