//! A value that may be replaced while the node runs: what a reload of the settings changes.
//!
//! Neighbours: the node sets it, stations and blocks look at it each time they need it. Readers see the old value or the
//! new one, never a mixture, and never wait for more than another reader's look.

use std::sync::{Arc, PoisonError, RwLock};

/// All clones share one value.
#[derive(Debug)]
pub struct Live<T>(Arc<RwLock<Arc<T>>>);

impl<T> Live<T> {
    /// Begins with this value.
    pub fn new(value: T) -> Self {
        Self(Arc::new(RwLock::new(Arc::new(value))))
    }

    /// The value of this moment.
    pub fn get(&self) -> Arc<T> {
        Arc::clone(&self.0.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// Puts another value in its place, for all clones.
    pub fn set(&self, value: T) {
        let value = Arc::new(value);
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = value;
    }
}

impl<T> Clone for Live<T> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

impl<T: Default> Default for Live<T> {
    fn default() -> Self {
        Self::new(T::default())
    }
}

impl<T: PartialEq> PartialEq for Live<T> {
    fn eq(&self, other: &Self) -> bool {
        *self.get() == *other.get()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_clones_see_what_was_set_last_and_who_looked_before_keeps_what_he_saw() {
        let live = Live::new(vec!["a"]);
        let (clone, before) = (live.clone(), live.get());
        live.set(vec!["b"]);
        assert_eq!((&*before, &*clone.get()), (&vec!["a"], &vec!["b"]));
        assert_eq!(live, clone);
    }
}
