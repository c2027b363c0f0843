//! The providers of the settings, found by the id that an assignment names.
//!
//! Neighbours: the node makes the set of its settings and replaces it on reload; [`super`] looks one up for each
//! assignment. What counts calls (`pace`) outlives a reload, by the name of the entry. Never calls anybody.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::Duration;

use caf_protocol::live::Live;
use caf_protocol::model::{Cost, Price, Usage};
use url::Url;

use super::pace::Pace;
use crate::settings::providers::{base_url, check};
use crate::settings::{ProviderSettings, SettingError};

/// The providers of the settings. All clones share them, and they may be replaced at any time: an assignment that comes
/// from then on is run by the new ones.
#[derive(Debug, Clone, Default)]
pub struct Providers(Live<Set>);

/// The providers as they are at one moment.
#[derive(Debug, Default)]
struct Set {
    exact: HashMap<String, Arc<Provider>>,
    /// What an id begins with, the longest first.
    wild: Vec<(String, Arc<Provider>)>,
    /// How often they were replaced.
    generation: u64,
}

/// One server, with what is counted of it.
#[derive(Debug)]
pub(super) struct Provider {
    /// Name of its entry.
    pub(super) name: Arc<str>,
    pub(super) settings: ProviderSettings,
    pub(super) chat: Url,
    pub(super) embeddings: Url,
    pub(super) number: usize,
    pub(super) generation: u64,
    pub(super) pace: Arc<Pace>,
    prices: (Price, Price),
}

impl Providers {
    /// Puts these in place of all that were.
    ///
    /// # Errors
    /// Every rule that is broken, and nothing has changed then.
    pub fn replace(&self, settings: &BTreeMap<String, ProviderSettings>) -> Result<(), Vec<SettingError>> {
        check(settings)?;
        let before = self.0.get();
        let mut set = Set {
            generation: before.generation + 1,
            ..Set::default()
        };
        for (number, (name, settings)) in settings.iter().enumerate() {
            let Some(provider) = Provider::new((number, name), settings, &before, set.generation) else {
                continue;
            };
            let (id, provider) = (settings.id(name), Arc::new(provider));
            match id.strip_suffix('*') {
                Some(start) => set.wild.push((start.to_owned(), provider)),
                None => {
                    set.exact.insert(id.to_owned(), provider);
                }
            }
        }
        set.wild.sort_by_key(|(start, _)| std::cmp::Reverse(start.len()));
        self.0.set(set);
        Ok(())
    }

    /// Whether there is none at all.
    pub(super) fn are_none(&self) -> bool {
        let set = self.0.get();
        set.exact.is_empty() && set.wild.is_empty()
    }

    /// Who is meant by this id: who has it whole, else by the longest beginning.
    pub(super) fn find(&self, id: &str) -> Option<Arc<Provider>> {
        let set = self.0.get();
        let wild = || {
            let found = set.wild.iter().find(|(start, _)| id.starts_with(start.as_str()));
            found.map(|(_, provider)| provider)
        };
        set.exact.get(id).or_else(wild).cloned()
    }
}

impl Set {
    fn named(&self, name: &str) -> Option<&Arc<Provider>> {
        let wild = self.wild.iter().map(|(_, provider)| provider);
        self.exact
            .values()
            .chain(wild)
            .find(|provider| &*provider.name == name)
    }
}

impl Provider {
    fn new(
        (number, name): (usize, &str),
        settings: &ProviderSettings,
        before: &Set,
        generation: u64,
    ) -> Option<Self> {
        let base = base_url(&settings.base_url)?;
        let at = |call: &str| {
            let mut url = base.clone();
            url.set_path(&format!("{}/{call}", base.path().trim_end_matches('/')));
            url
        };
        let pace = before.named(name).map(|before| Arc::clone(&before.pace));
        let pace = pace.unwrap_or_default();
        pace.allow(settings);
        Some(Self {
            name: name.into(),
            chat: at("chat/completions"),
            embeddings: at("embeddings"),
            number,
            generation,
            pace,
            prices: (
                Price::per_million(settings.input_price_per_million)?,
                Price::per_million(settings.output_price_per_million)?,
            ),
            settings: settings.clone(),
        })
    }

    /// Name of the model that an assignment for `id` asks for; nothing where neither says it.
    pub(super) fn model<'a>(&'a self, id: &'a str) -> Option<&'a str> {
        let named = || id.split_once(':').map(|(_, model)| model);
        self.settings
            .model
            .as_deref()
            .or_else(named)
            .filter(|model| !model.is_empty())
    }

    /// What so many tokens cost.
    pub(super) fn cost(&self, usage: Usage) -> Cost {
        Cost::of(usage.input, self.prices.0).and(Cost::of(usage.output, self.prices.1))
    }

    pub(super) fn connect_limit(&self) -> Duration {
        Duration::from_millis(self.settings.connect_timeout_ms)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn providers(names: &[&str]) -> Providers {
        let providers = Providers::default();
        let settings = names.iter().map(|name| {
            let mut settings = ProviderSettings::new("http://127.0.0.1:1/v1/");
            settings.model = (!name.contains(':')).then(|| "m".to_owned());
            ((*name).to_owned(), settings)
        });
        providers.replace(&settings.collect()).expect("are valid");
        providers
    }

    #[test]
    fn the_entry_that_says_most_of_an_id_counts() {
        let providers = providers(&["openai:*", "openai:gpt-4*", "openai:gpt-4o", "*", "local"]);
        for (id, name) in [
            ("openai:gpt-4o", "openai:gpt-4o"),
            ("openai:gpt-4o-mini", "openai:gpt-4*"),
            ("openai:o1", "openai:*"),
            ("openai:", "openai:*"),
            ("OpenAI:gpt-4o", "*"),
            ("local", "local"),
            ("local2", "*"),
        ] {
            assert_eq!(
                providers.find(id).map(|found| found.name.to_string()).as_deref(),
                Some(name),
                "{id}"
            );
        }
        assert!(Providers::default().find("openai:gpt-4o").is_none());
    }

    #[test]
    fn the_model_is_the_settings_or_what_follows_the_first_colon() {
        let providers = providers(&["openai:*", "local"]);
        let model = |id: &str| {
            providers
                .find(id)
                .and_then(|found| found.model(id).map(str::to_owned))
        };
        assert_eq!(model("openai:ft:gpt:x").as_deref(), Some("ft:gpt:x"));
        assert_eq!(model("openai:"), None);
        assert_eq!(model("local").as_deref(), Some("m"));
    }

    #[test]
    fn calls_go_below_the_base_address_whatever_its_end() {
        for (base, chat) in [
            ("http://h/v1", "http://h/v1/chat/completions"),
            ("http://h/v1/", "http://h/v1/chat/completions"),
            ("http://h", "http://h/chat/completions"),
            (
                "https://h:8443/a/b?api-version=1",
                "https://h:8443/a/b/chat/completions?api-version=1",
            ),
        ] {
            let providers = Providers::default();
            let mut settings = ProviderSettings::new(base);
            settings.model = Some("m".to_owned());
            providers
                .replace(&BTreeMap::from([("p".to_owned(), settings)]))
                .expect("is valid");
            assert_eq!(providers.find("p").expect("is there").chat.as_str(), chat);
        }
    }
}
