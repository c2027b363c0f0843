//! One call of a model, as far as others may know of it: whom it asks, how it ended, what it used. No prompt and no answer.
//!
//! Neighbours: a task names its [`ModelTarget`] ([`crate::block::Task::model`]) and fills the [`ModelCall`] of its context
//! while it runs; the block worker makes span and metrics of both, however the attempt ends. Never does
//! I/O; a job that calls no model leaves it empty.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

use crate::model::{Cost, Usage};

/// What a task is about to call.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ModelTarget {
    /// `executor.provider_id` of the assignment: an id, for the span.
    pub provider_id: Arc<str>,
    /// The key of the settings that it was found by, such as `openai:*`: a closed set, the label of metrics.
    pub listed_as: Arc<str>,
    /// The model as the provider is asked for it.
    pub model: Arc<str>,
}

/// How a call ended (contract 8.5).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CallStatus {
    /// With a whole answer.
    Success,
    /// In any other way: failed, given up, cut off.
    Error,
    /// The provider, or our own limit on it, said: too many.
    RateLimited,
}

impl CallStatus {
    /// All of them, in the order in which they are shown.
    pub const ALL: [Self; 3] = [Self::Success, Self::Error, Self::RateLimited];

    /// The word in spans and labels.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Success => "success",
            Self::Error => "error",
            Self::RateLimited => "rate_limited",
        }
    }
}

/// What is known of a call so far.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct CallFacts {
    /// When the provider began to be asked, connecting included; nothing: it was not, and there is no call to speak of.
    pub sent: Option<Instant>,
    /// From then to the first token of a streamed answer.
    pub first_token: Option<Duration>,
    /// Whether it was told that there were too many.
    pub is_rate_limited: bool,
    /// What it used, as far as that is known. Of a call that failed too, where the provider says it.
    pub usage: Usage,
    /// What that costs by the prices of the settings.
    pub cost: Cost,
}

/// Where an attempt writes down what is known of its call, as soon as it is: an attempt that is cancelled or runs out of time
/// gets to say nothing afterwards. Clones are the same call.
#[derive(Debug, Clone, Default)]
pub struct ModelCall(Arc<Mutex<CallFacts>>);

impl ModelCall {
    /// From now on the provider is asked; connecting is part of it, waiting for our own limits is not.
    pub fn sent(&self) {
        self.facts_mut().sent = Some(Instant::now());
    }

    /// The first token of the answer is here. Only the first time counts.
    pub fn first_token(&self) {
        let mut facts = self.facts_mut();
        if let (Some(sent), None) = (facts.sent, facts.first_token) {
            facts.first_token = Some(sent.elapsed());
        }
    }

    /// It was refused because there were too many.
    pub fn rate_limited(&self) {
        self.facts_mut().is_rate_limited = true;
    }

    /// It used so much, which costs `cost`. The last word counts.
    pub fn used(&self, usage: Usage, cost: Cost) {
        let mut facts = self.facts_mut();
        facts.usage = usage;
        facts.cost = cost;
    }

    /// What is known now.
    pub fn facts(&self) -> CallFacts {
        self.facts_mut().clone()
    }

    fn facts_mut(&self) -> MutexGuard<'_, CallFacts> {
        // Plain assignments: a panic elsewhere leaves nothing half written.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl CallFacts {
    /// How it ended, given whether the attempt has an answer.
    pub fn status(&self, has_succeeded: bool) -> CallStatus {
        match (has_succeeded, self.is_rate_limited) {
            (true, _) => CallStatus::Success,
            (false, true) => CallStatus::RateLimited,
            (false, false) => CallStatus::Error,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::Price;

    #[test]
    fn what_one_clone_says_the_other_knows_and_the_first_token_comes_once() {
        let call = ModelCall::default();
        call.first_token();
        assert_eq!(call.facts(), CallFacts::default(), "nothing was sent");
        let same = call.clone();
        same.sent();
        same.first_token();
        let first = call.facts().first_token;
        assert!(first.is_some());
        same.first_token();
        let usage = Usage {
            input: Some(3),
            output: None,
        };
        let cost = Cost::of(usage.input, Price::per_million(1.0).expect("is one"));
        same.used(usage, cost);
        let facts = call.facts();
        assert_eq!((facts.first_token, facts.usage, facts.cost), (first, usage, cost));
    }

    #[test]
    fn an_answer_counts_and_without_one_the_limit_does() {
        let facts = |is_rate_limited| CallFacts {
            is_rate_limited,
            ..CallFacts::default()
        };
        assert_eq!(facts(true).status(true), CallStatus::Success);
        assert_eq!(facts(true).status(false), CallStatus::RateLimited);
        assert_eq!(facts(false).status(false), CallStatus::Error);
    }
}
