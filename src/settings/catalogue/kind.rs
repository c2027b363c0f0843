//! Types of single settings: which values fit, and how a text becomes one.

use serde_json::{Number, Value};

/// Type of a value.
#[derive(Debug, Clone, PartialEq)]
pub enum Kind {
    /// Text.
    Text,
    /// True or false.
    Flag,
    /// A whole number within limits.
    Integer {
        /// Least value.
        min: i128,
        /// Greatest value.
        max: i128,
    },
    /// Any number.
    Number,
    /// One of these words.
    Choice(Vec<String>),
    /// A list; comma-separated where only a text can be given.
    List(Box<Kind>),
    /// What fits any of several types; of a text the first that it fits.
    Either(Vec<Kind>),
    /// Something that only its own type can judge.
    Other,
}

/// The words for true and for false where only a text can be given; case does not matter.
const TRUE_WORDS: [&str; 3] = ["true", "1", "yes"];
const FALSE_WORDS: [&str; 4] = ["false", "0", "no", ""];

/// Reads a flag from a text.
pub fn parse_flag(text: &str) -> Option<bool> {
    let word = text.trim().to_ascii_lowercase();
    if TRUE_WORDS.contains(&word.as_str()) {
        Some(true)
    } else {
        FALSE_WORDS.contains(&word.as_str()).then_some(false)
    }
}

impl Kind {
    /// The type that a schema without references describes.
    pub(super) fn of_schema(name: Option<&str>, schema: &Value, items: Option<Self>) -> Self {
        let words = match (schema.get("const"), schema.get("enum")) {
            (Some(Value::String(word)), _) => Some(vec![word.clone()]),
            (_, Some(Value::Array(words))) => Some(
                words
                    .iter()
                    .filter_map(Value::as_str)
                    .map(str::to_owned)
                    .collect(),
            ),
            _ => None,
        };
        match (name, words) {
            (Some("string"), Some(words)) => Self::Choice(words),
            (Some("string"), None) => Self::Text,
            (Some("boolean"), _) => Self::Flag,
            (Some("integer"), _) => integer(schema),
            (Some("number"), _) => Self::Number,
            (Some("array"), _) => Self::List(Box::new(items.unwrap_or(Self::Other))),
            _ => Self::Other,
        }
    }

    /// The type of values that fit one of several types.
    pub(super) fn any_of(kinds: Vec<Self>) -> Self {
        let mut words = Vec::new();
        for kind in &kinds {
            match kind {
                Self::Choice(more) => words.extend(more.iter().cloned()),
                _ if kinds.len() == 1 => return kind.clone(),
                _ => return Self::Either(kinds),
            }
        }
        Self::Choice(words)
    }

    /// What a value must be, as the end of the sentence "must be …".
    pub fn description(&self) -> String {
        match self {
            Self::Text => "text".to_owned(),
            Self::Flag => "true or false".to_owned(),
            Self::Integer { min, max } => match i128::from(u64::MAX) {
                unbounded if *max >= unbounded / 2 => format!("a whole number of at least {min}"),
                _ => format!("a whole number from {min} to {max}"),
            },
            Self::Number => "a number".to_owned(),
            Self::Choice(words) => match &words[..] {
                [word] => word.clone(),
                words => format!("one of {}", words.join(", ")),
            },
            Self::List(items) => match items.as_ref() {
                Self::Integer { min, max } => format!("a list of whole numbers from {min} to {max}"),
                _ => "a list".to_owned(),
            },
            Self::Either(kinds) => {
                let each: Vec<_> = kinds.iter().map(Self::description).collect();
                each.join(" or ")
            }
            Self::Other => "readable".to_owned(),
        }
    }

    /// Whether a value from a file fits.
    pub fn accepts(&self, value: &Value) -> bool {
        match (self, value) {
            (Self::Text, Value::String(_))
            | (Self::Flag, Value::Bool(_))
            | (Self::Number, Value::Number(_)) => true,
            (Self::Integer { min, max }, Value::Number(number)) => {
                as_integer(number).is_some_and(|n| (*min..=*max).contains(&n))
            }
            (Self::Choice(words), Value::String(word)) => words.contains(word),
            (Self::List(kind), Value::Array(items)) => items.iter().all(|item| kind.accepts(item)),
            (Self::Either(kinds), value) => kinds.iter().any(|kind| kind.accepts(value)),
            (Self::Other, _) => true,
            _ => false,
        }
    }

    /// The value that a text from a variable or an option stands for, if it fits.
    pub fn parse(&self, text: &str) -> Option<Value> {
        let trimmed = text.trim();
        match self {
            Self::Text => Some(Value::from(text)),
            Self::Flag => parse_flag(text).map(Value::from),
            Self::Integer { .. } | Self::Number => {
                let number: Value = serde_json::from_str(trimmed).ok()?;
                self.accepts(&number).then_some(number)
            }
            Self::Choice(words) => {
                let word = words.iter().find(|word| word.eq_ignore_ascii_case(trimmed))?;
                Some(Value::from(word.as_str()))
            }
            Self::List(kind) => {
                let items = trimmed.split(',').map(str::trim).filter(|item| !item.is_empty());
                items
                    .map(|item| kind.parse(item))
                    .collect::<Option<Vec<_>>>()
                    .map(Value::from)
            }
            Self::Either(kinds) => kinds.iter().find_map(|kind| kind.parse(text)),
            Self::Other => Some(serde_json::from_str(trimmed).unwrap_or_else(|_| Value::from(text))),
        }
    }
}

fn as_integer(number: &Number) -> Option<i128> {
    number
        .as_u64()
        .map(i128::from)
        .or_else(|| number.as_i64().map(i128::from))
}

/// Limits as the schema names them, else as its format implies.
fn integer(schema: &Value) -> Kind {
    let format = schema.get("format").and_then(Value::as_str).unwrap_or("int64");
    let (least, greatest) = match format {
        "uint8" => (0, i128::from(u8::MAX)),
        "uint16" => (0, i128::from(u16::MAX)),
        "uint32" => (0, i128::from(u32::MAX)),
        // The layer that merges sources holds no more; no setting needs it.
        "uint" | "uint64" => (0, i128::from(i64::MAX)),
        "int32" => (i128::from(i32::MIN), i128::from(i32::MAX)),
        _ => (i128::from(i64::MIN), i128::from(i64::MAX)),
    };
    let limit = |name: &str| schema.get(name).and_then(Value::as_number).and_then(as_integer);
    Kind::Integer {
        min: limit("minimum").map_or(least, |n| n.max(least)),
        max: limit("maximum").map_or(greatest, |n| n.min(greatest)),
    }
}
