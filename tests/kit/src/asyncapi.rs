//! An AsyncAPI document as a judge: what is sent must stand in it, each header and field too.
//!
//! Neighbours: tests give it the document of the program. Stricter than the document, which allows more fields: here what
//! a worker writes may have none that no schema names.

use serde_json::{Map, Value, json};

/// Schemas of what is only read: those must not be closed.
const READ: &str = "Read";

/// The document.
#[derive(Debug)]
pub struct Document {
    value: Value,
    /// Its components, every object closed.
    closed: Value,
}

impl Document {
    /// A judge by this document.
    pub fn new(value: Value) -> Self {
        let mut closed = value["components"].clone();
        let schemas = closed["schemas"].as_object_mut().into_iter().flatten();
        for (_, schema) in schemas.filter(|(name, _)| !name.starts_with(READ)) {
            close(schema);
        }
        Self { value, closed }
    }

    /// The document itself.
    pub fn value(&self) -> &Value {
        &self.value
    }

    /// Name of the channel whose address is, or allows, this subject.
    pub fn channel_of(&self, subject: &str) -> Option<&str> {
        let channels = self.value["channels"].as_object()?;
        let found = channels.iter().find(|(_, channel)| {
            channel["address"]
                .as_str()
                .is_some_and(|address| allows(address, subject))
        });
        found.map(|(name, _)| name.as_str())
    }

    /// Whether the document names the subject as one of the broker's own protocol.
    pub fn is_brokers(&self, subject: &str) -> bool {
        let lists = ["send", "receive"].map(|list| &self.value["x-broker-protocol"][list]);
        let mut patterns = lists.into_iter().filter_map(Value::as_array).flatten();
        patterns.any(|pattern| {
            let prefix = pattern.as_str().and_then(|pattern| pattern.strip_suffix('>'));
            prefix.is_some_and(|prefix| subject.starts_with(prefix))
        })
    }

    /// Messages of a channel, by name.
    pub fn messages_of(&self, channel: &str) -> Vec<&str> {
        let messages = self.value["channels"][channel]["messages"].as_object();
        messages
            .into_iter()
            .flatten()
            .map(|(name, _)| name.as_str())
            .collect()
    }

    /// What is wrong with a message, by the schemas of its headers (an object, or null for none) and payload.
    pub fn faults(&self, message: &str, headers: &Value, payload: &Value) -> Vec<String> {
        let schemas = &self.value["components"]["messages"][message];
        let mut faults = self.against(&schemas["payload"], payload);
        let none = Value::Object(Map::new());
        let headers = if headers.is_null() { &none } else { headers };
        match schemas.get("headers") {
            Some(schema) => {
                let mut schema = schema.clone();
                close(&mut schema);
                faults.extend(self.against(&schema, headers));
            }
            None if *headers != none => faults.push(format!("headers, where none are named: {headers}")),
            None => {}
        }
        faults
    }

    fn against(&self, schema: &Value, value: &Value) -> Vec<String> {
        let whole = json!({
            "$schema": "http://json-schema.org/draft-07/schema#",
            "allOf": [schema],
            "components": self.closed,
        });
        let validator = match jsonschema::validator_for(&whole) {
            Ok(validator) => validator,
            Err(error) => return vec![format!("no schema: {error}")],
        };
        let faults = validator.iter_errors(value);
        faults
            .map(|fault| format!("{}: {fault}", fault.instance_path()))
            .collect()
    }
}

/// Every object may have the properties that are named, and no others.
fn close(schema: &mut Value) {
    match schema {
        Value::Object(object) => {
            object.values_mut().for_each(close);
            if object.get("properties").is_some_and(Value::is_object) && object.get("type").is_some() {
                object.entry("additionalProperties").or_insert(json!(false));
            }
        }
        Value::Array(items) => items.iter_mut().for_each(close),
        _ => {}
    }
}

/// `{…}` in an address stands for one token.
fn allows(address: &str, subject: &str) -> bool {
    let (address, subject): (Vec<_>, Vec<_>) = (address.split('.').collect(), subject.split('.').collect());
    let fits =
        |(wanted, given): (&&str, &&str)| wanted == given || (wanted.starts_with('{') && !given.is_empty());
    address.len() == subject.len() && address.iter().zip(&subject).all(fits)
}
