//! Writes a flags document, for the demo, the replay and tests: who is on, flag by flag.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Value, json};

use super::document::{Document, Fault, Flag};
use crate::interaction::Stage;

/// A flags document in the making. Everything is off until it is turned on.
#[derive(Debug, Clone, Default)]
pub struct DocumentBuilder {
    on: BTreeMap<Flag, Who>,
    kill: bool,
}

#[derive(Debug, Clone, Default)]
struct Who {
    everybody: bool,
    accounts: BTreeSet<String>,
    kinds: BTreeMap<String, BTreeSet<String>>,
}

impl DocumentBuilder {
    /// Turns the flag of `stage` on for an account, all its kinds. `off` has no flag and changes nothing.
    pub fn account(&mut self, stage: Stage, account: &str) -> &mut Self {
        self.flag(stage, |who| _ = who.accounts.insert(account.to_owned()))
    }

    /// Turns the flag of `stage` on for one kind of an account.
    pub fn kind(&mut self, stage: Stage, account: &str, kind: &str) -> &mut Self {
        self.flag(stage, |who| _ = who.kinds.entry(account.to_owned()).or_default().insert(kind.to_owned()))
    }

    /// Turns the flag of `stage` on for everybody.
    pub fn everybody(&mut self, stage: Stage) -> &mut Self {
        self.flag(stage, |who| who.everybody = true)
    }

    /// Turns the flag of `stage` off again for an account and its kinds (not for who comes under `everybody`).
    pub fn without(&mut self, stage: Stage, account: &str) -> &mut Self {
        self.flag(stage, |who| {
            who.accounts.remove(account);
            who.kinds.remove(account);
        })
    }

    /// Sets the kill switch.
    pub fn kill(&mut self, on: bool) -> &mut Self {
        self.kill = on;
        self
    }

    /// The document, checked like any other: a name that the evaluator can't compare with is a fault.
    pub fn build(&self) -> Result<Document, Vec<Fault>> {
        let features: Vec<_> = Flag::ALL.into_iter().map(|flag| self.feature(flag)).collect();
        let document = json!({ "version": 2, "features": features });
        Document::parse(&format!("{document:#}\n"))
    }

    fn flag(&mut self, stage: Stage, change: impl FnOnce(&mut Who)) -> &mut Self {
        if let Some(flag) = Flag::of(stage) {
            change(self.on.entry(flag).or_default());
        }
        self
    }

    fn feature(&self, flag: Flag) -> Value {
        let strategies = match flag {
            Flag::Kill => vec![strategy(&[])],
            _ => self.on.get(&flag).map(Who::strategies).unwrap_or_default(),
        };
        let enabled = if flag == Flag::Kill { self.kill } else { !strategies.is_empty() };
        json!({ "name": flag.name(), "type": "release", "enabled": enabled, "strategies": strategies })
    }
}

impl Who {
    fn strategies(&self) -> Vec<Value> {
        let everybody = self.everybody.then(|| strategy(&[]));
        let accounts = (!self.accounts.is_empty()).then(|| strategy(&[within("userId", &self.accounts)]));
        let kinds = self.kinds.iter().map(|(account, kinds)| {
            strategy(&[within("userId", &BTreeSet::from([account.clone()])), within("kind", kinds)])
        });
        everybody.into_iter().chain(accounts).chain(kinds).collect()
    }
}

/// `default` with a list of accounts rather than `userWithId`, whose one text of commas can't hold every name.
fn strategy(constraints: &[Value]) -> Value {
    json!({ "name": "default", "constraints": constraints })
}

fn within(context: &str, values: &BTreeSet<String>) -> Value {
    json!({ "contextName": context, "operator": "IN", "values": values })
}
