//! The AsyncAPI 3.0 document of a worker: every subject that it speaks or listens on, with schema, headers and an example of
//! each message. Written from the types, so that it cannot say anything else than what travels.
//!
//! Neighbours: the node gives the names in force ([`Names`]) and prints the document; `schemas/asyncapi.json` holds it for
//! the default names. Schemas are of JSON Schema draft 7, which is what tools of AsyncAPI 3.0 read.

mod examples;
mod messages;

use serde_json::{Map, Value, json};

use crate::approval::{DECIDED_SUBJECT, REQUESTED_SUBJECT};
use crate::discovery::{SERVICE, Verb};

/// Names that a worker's settings decide.
#[derive(Debug, Clone)]
pub struct Names {
    /// Host and port of the broker, without credentials.
    pub host: String,
    /// `nats`, `tls`, `ws` or `wss`.
    pub protocol: String,
    /// Version of the program.
    pub version: String,
    /// Subject of assignments.
    pub assign: String,
    /// Subject of acknowledgements.
    pub ack: String,
    /// Subject of results.
    pub result: String,
    /// Subject of signs of life.
    pub heartbeat: String,
    /// Subject of dead letters.
    pub dlq: String,
    /// First part of the subjects of questions between workers.
    pub owner: String,
    /// First part of the subjects of requests to cancel.
    pub cancel: String,
    /// Consumer, or queue group in core mode, that all workers of a fleet share.
    pub durable: String,
    /// Bucket of claims.
    pub claims_bucket: String,
    /// Bucket of questions to people.
    pub approvals_bucket: String,
    /// Bucket of what the fleet must know of its streams.
    pub state_bucket: String,
    /// Bucket of outputs that are too large for a result.
    pub objects_bucket: String,
}

/// The document.
pub fn document(names: &Names) -> Value {
    let (schemas, payloads) = messages::schemas();
    json!({
        "asyncapi": "3.0.0",
        "info": {
            "title": "caf-worker",
            "version": names.version,
            "description": "Messages of a worker node beside its router, on NATS. Subjects are those of the worker's settings.",
            "license": { "name": "Apache-2.0" },
        },
        "defaultContentType": "application/json",
        "servers": {
            "broker": {
                "host": names.host,
                "protocol": names.protocol,
                "description": "NATS server, with JetStream unless nats.mode is core.",
            },
        },
        "channels": channels(names),
        "operations": operations(names),
        "components": { "schemas": schemas, "messages": messages::all(&payloads) },
        "x-broker-protocol": {
            "description": "Subjects of the broker's own protocol that a worker uses beside the channels: their messages are defined by NATS. $JS.API asks for streams, consumers and messages, and for what the buckets behind $KV and $O hold; $JS.ACK says what becomes of a delivery; _INBOX is where answers and, by pulling, assignments arrive.",
            "send": ["$JS.API.>", "$JS.ACK.>", "_INBOX.>"],
            "receive": ["_INBOX.>"],
        },
    })
}

/// A channel: address, what it is for, messages by name.
fn channel(address: impl Into<Value>, description: &str, messages: &[&str]) -> Value {
    let messages: Map<String, Value> = messages
        .iter()
        .map(|name| {
            (
                (*name).to_owned(),
                json!({"$ref": format!("#/components/messages/{name}")}),
            )
        })
        .collect();
    json!({ "address": address.into(), "description": description, "messages": messages })
}

/// One with a last token that varies.
fn channel_of_each(
    prefix: &str,
    (token, meaning): (&str, &str),
    description: &str,
    messages: &[&str],
) -> Value {
    let mut channel = channel(format!("{prefix}.{{{token}}}"), description, messages);
    channel["parameters"] = json!({ token: { "description": meaning } });
    channel
}

fn channels(names: &Names) -> Value {
    let mut channels = json!({
        "assign": channel(names.assign.as_str(), "Assignments, from the router.", &["ExecAssignment"]),
        "ack": channel(names.ack.as_str(), "One acknowledgement for each assignment that can be answered.", &["ExecAssignmentAck"]),
        "result": channel(names.result.as_str(), "One result for each assignment that can be answered.", &["ExecResult"]),
        "dlq": channel(names.dlq.as_str(), "Dead letters: assignments that were given up.", &["DeadLetter"]),
        "heartbeat": channel(names.heartbeat.as_str(), "Signs of life, every worker.heartbeat_interval_ms.", &["Heartbeat"]),
        "owner": channel_of_each(
            &names.owner,
            ("owner", "Name of the process that is asked; its id in discovery."),
            "Questions between the workers of a fleet: is this assignment worked on?",
            &["OwnerQuestion"],
        ),
        "claims": channel_of_each(
            &format!("$KV.{}", names.claims_bucket),
            ("key", "SHA-256 of tenant and assignment id, in hexadecimal."),
            "Who works on what: a key-value bucket for workers only. Its records are no contract.",
            &["ClaimRecord"],
        ),
        "state": channel_of_each(
            &format!("$KV.{}", names.state_bucket),
            ("key", "Stream and consumer, or a dead letter that was replayed."),
            "What the fleet must know of its streams: a key-value bucket for workers only. Its records are no contract.",
            &["StateRecord"],
        ),
        "outputChunks": channel_of_each(
            &format!("$O.{}.C", names.objects_bucket),
            ("object", "Id of the object, given by the writer."),
            "Parts of outputs that are too large for a result: an object store. Bytes; the form is NATS' (ADR-20).",
            &[],
        ),
        "outputMeta": channel_of_each(
            &format!("$O.{}.M", names.objects_bucket),
            ("name", "Name of the object, as base64url."),
            "What an output in the object store is called, its size and digest. The form is NATS' (ADR-20).",
            &[],
        ),
        "inbox": channel(Value::Null, "The reply subject of a request.", &["OwnerAnswer", "Ping", "Info", "Stats", "CancelAnswer", "CancelRefusal"]),
    });
    let mut advisories = channel(
        "$JS.EVENT.ADVISORY.CONSUMER.{kind}.{stream}.{consumer}",
        "What the broker says of assignments that it no longer delivers. The form is NATS'.",
        &[],
    );
    advisories["parameters"] = json!({
        "kind": { "enum": ["MAX_DELIVERIES", "MSG_TERMINATED"] },
        "stream": { "description": "The stream of assignments." },
        "consumer": { "description": "nats.durable." },
    });
    channels["advisories"] = advisories;
    channels["approvals"] = channel_of_each(
        &format!("$KV.{}", names.approvals_bucket),
        (
            "key",
            "SHA-256 of tenant and assignment id, in hexadecimal: the id of the approval.",
        ),
        "Questions to people, while approvals.enabled is on: a key-value bucket for workers only. Its records are no contract.",
        &["ApprovalRecord"],
    );
    let stored = "Nothing stores it unless an operator has a stream for it, which then keeps one of each by its message id.";
    channels["approvalRequested"] = channel(
        REQUESTED_SUBJECT,
        &format!("For notifiers: somebody is asked, while approvals.enabled is on. At least once. {stored}"),
        &["ApprovalRequested"],
    );
    channels["approvalDecided"] = channel(
        DECIDED_SUBJECT,
        &format!("For notifiers: how it ended. At least once, before the result. {stored}"),
        &["ApprovalDecided"],
    );
    channels["cancel"] = channel_of_each(
        &names.cancel,
        (
            "tenant",
            "The tenant, as base64url without padding: permissions of the broker say who may cancel whose jobs.",
        ),
        "Requests to cancel what a tenant has sent, while worker.cancellation is on. Every worker hears each and answers for itself.",
        &["CancelRequest"],
    );
    for verb in Verb::ALL {
        let prefix = format!("$SRV.{}", verb.as_str());
        let names = DiscoveryNames::of(verb);
        let ask = "NATS services API (ADR-32), unless nats.discovery is off.";
        channels[names.all] = channel(
            prefix.as_str(),
            &format!("Asks all services. {ask}"),
            &["Question"],
        );
        let workers = format!("{prefix}.{SERVICE}");
        channels[names.workers] = channel(
            workers.as_str(),
            &format!("Asks all workers. {ask}"),
            &["Question"],
        );
        let id = ("id", "Id of the process, from an answer of all.");
        channels[names.one] =
            channel_of_each(&workers, id, &format!("Asks one worker. {ask}"), &["Question"]);
    }
    channels
}

/// Names of channels and messages of a verb.
struct DiscoveryNames {
    all: &'static str,
    workers: &'static str,
    one: &'static str,
    answer: &'static str,
}

impl DiscoveryNames {
    const fn of(verb: Verb) -> Self {
        let (all, workers, one, answer) = match verb {
            Verb::Ping => ("pingAll", "pingWorkers", "pingOne", "Ping"),
            Verb::Info => ("infoAll", "infoWorkers", "infoOne", "Info"),
            Verb::Stats => ("statsAll", "statsWorkers", "statsOne", "Stats"),
        };
        Self {
            all,
            workers,
            one,
            answer,
        }
    }
}

fn operation(action: &str, channel: &str, summary: &str) -> Value {
    json!({ "action": action, "channel": {"$ref": format!("#/channels/{channel}")}, "summary": summary })
}

/// One that a message in the inbox answers.
fn with_reply(mut operation: Value, answer: &str) -> Value {
    operation["reply"] = json!({
        "channel": {"$ref": "#/channels/inbox"},
        "messages": [{"$ref": format!("#/channels/inbox/messages/{answer}")}],
    });
    operation
}

fn operations(names: &Names) -> Value {
    let mut take = operation(
        "receive",
        "assign",
        "Take an assignment. There is no reply: answers go to ack and result.",
    );
    take["bindings"] = json!({ "nats": { "queue": names.durable, "bindingVersion": "0.1.0" } });
    let hear =
        "Cancel what is asked for, now or when it arrives, and say what was done where a reply is wanted.";
    let mut hear_cancel = with_reply(operation("receive", "cancel", hear), "CancelAnswer");
    if let Some(messages) = hear_cancel["reply"]["messages"].as_array_mut() {
        messages.push(json!({"$ref": "#/channels/inbox/messages/CancelRefusal"}));
    }
    let mut operations = json!({
        "takeAssignment": take,
        "acknowledge": operation("send", "ack", "Say whether the job was taken."),
        "answer": operation("send", "result", "Say how the job ended."),
        "bury": operation("send", "dlq", "Keep an assignment that cannot be helped."),
        "beat": operation("send", "heartbeat", "Say that the worker lives, and how it is."),
        "askOwner": with_reply(operation("send", "owner", "Ask whether a process still works on an assignment."), "OwnerAnswer"),
        "answerOwner": with_reply(operation("receive", "owner", "Say whether an assignment is worked on here."), "OwnerAnswer"),
        "hearCancel": hear_cancel,
        "passCancelOn": operation("send", "cancel", "Pass on to all workers what one was asked on its admin port."),
        "keepApproval": operation("send", "approvals", "Keep what a job asks people, and what they answered."),
        "tellRequested": operation("send", "approvalRequested", "Tell notifiers that somebody is asked."),
        "tellDecided": operation("send", "approvalDecided", "Tell notifiers how it ended."),
        "claim": operation("send", "claims", "Write down who works on an assignment."),
        "keepOutput": operation("send", "outputChunks", "Keep an output that is too large for a result."),
        "nameOutput": operation("send", "outputMeta", "Say what an output is called; the result refers to it."),
        "hearAdvisory": operation("receive", "advisories", "Learn that an assignment is given up by the broker, and answer for it."),
        "note": operation("send", "state", "Write down up to where a stream is acknowledged, or that a letter was replayed."),
    });
    for verb in Verb::ALL {
        let names = DiscoveryNames::of(verb);
        for channel in [names.all, names.workers, names.one] {
            let receive = operation("receive", channel, "Answer who looks for workers.");
            operations[format!("{channel}Answered")] = with_reply(receive, names.answer);
        }
    }
    operations
}
