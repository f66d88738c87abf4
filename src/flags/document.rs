//! A checked flags document: what it says about an account and a kind, and the revision to quote for it.

use std::fmt;
use std::io;
use std::path::Path;

use sha2::{Digest, Sha256};

use super::evaluate::Evaluator;
use super::json::Node;
use super::{schema, store};
use crate::interaction::Stage;

/// One of the four flags that decide a stage.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Flag {
    /// Rehearse on Postgres.
    Shadow,
    /// Execute on Postgres, rehearse on Temporal.
    Live,
    /// Postgres only.
    Complete,
    /// Nobody above `shadow`.
    Kill,
}

impl Flag {
    /// All four, in the order of a migration.
    pub const ALL: [Flag; 4] = [Flag::Shadow, Flag::Live, Flag::Complete, Flag::Kill];

    /// The feature's name, in Unleash and in a file.
    pub const fn name(self) -> &'static str {
        match self {
            Flag::Shadow => "crossover-shadow",
            Flag::Live => "crossover-live",
            Flag::Complete => "crossover-complete",
            Flag::Kill => "crossover-kill",
        }
    }

    /// The flag that puts an account into `stage`; none does for `off`.
    pub const fn of(stage: Stage) -> Option<Flag> {
        match stage {
            Stage::Off => None,
            Stage::Shadow => Some(Flag::Shadow),
            Stage::Live => Some(Flag::Live),
            Stage::Complete => Some(Flag::Complete),
        }
    }
}

/// One thing wrong with a document, and where.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fault {
    /// A path such as `features[1].strategies[0].constraint`; a line and a column where it isn't even JSON.
    pub path: String,
    /// What is wrong there and, where it can be guessed, what was meant.
    pub message: String,
}

impl Fault {
    pub(super) fn new(path: &str, message: impl fmt::Display) -> Self {
        Self { path: path.to_owned(), message: message.to_string() }
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let path = if self.path.is_empty() { "the document" } else { &self.path };
        write!(f, "{path}: {}", self.message)
    }
}

/// The four flags in Unleash's client-features format, checked and compiled.
pub struct Document {
    text: String,
    revision: String,
    evaluator: Evaluator,
}

impl Document {
    /// Reads and checks the document at `path`; the error names the file and everything that is wrong with it.
    pub fn read(path: &Path) -> Result<Self, String> {
        super::store::load(path)
    }

    /// Checks a whole document and reports every fault in it at once.
    pub fn parse(text: &str) -> Result<Self, Vec<Fault>> {
        let root: Node = serde_json::from_str(text).map_err(|error| vec![not_json(&error)])?;
        schema::check(&root)?;
        let evaluator = Evaluator::compile(text)?;
        Ok(Self { text: text.to_owned(), revision: revision_of(text), evaluator })
    }

    /// Where (account, kind) stands. Pure: the same document always gives the same answer.
    pub fn stage(&self, account: &str, kind: &str) -> Stage {
        self.evaluator.stage(account, kind)
    }

    /// Whether one flag is on for (account, kind).
    pub(super) fn is_on(&self, flag: Flag, account: &str, kind: &str) -> bool {
        self.evaluator.is_on(flag, account, kind)
    }

    /// The stage as if there were no kill switch.
    pub(super) fn highest(&self, account: &str, kind: &str) -> Stage {
        let on = |stage: &&Stage| Flag::of(**stage).is_some_and(|flag| self.is_on(flag, account, kind));
        Stage::ALL.iter().rev().find(on).copied().unwrap_or(Stage::Off)
    }

    /// `file:` and the first 12 hex digits of the text's SHA-256.
    pub fn revision(&self) -> &str {
        &self.revision
    }

    /// The text as it was read.
    pub fn text(&self) -> &str {
        &self.text
    }

    /// Writes the document to `path` in one step: who reads meanwhile sees the old one or this one, whole.
    pub fn write_to(&self, path: &Path) -> io::Result<()> {
        store::replace(path, &self.text)
    }
}

impl fmt::Debug for Document {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Document").field("revision", &self.revision).finish_non_exhaustive()
    }
}

fn revision_of(text: &str) -> String {
    let digest = Sha256::digest(text);
    let hex: String = digest.iter().take(6).map(|byte| format!("{byte:02x}")).collect();
    format!("file:{hex}")
}

fn not_json(error: &serde_json::Error) -> Fault {
    let full = error.to_string();
    // The text of the error ends with the place, which is the path here.
    let message = full.split(" at line ").next().unwrap_or(&full);
    Fault::new(&format!("line {}, column {}", error.line(), error.column()), format_args!("not JSON: {message}"))
}
