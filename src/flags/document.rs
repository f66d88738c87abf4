//! A checked flags document: what it says about an account and a kind, and the revision to quote for it.

use std::fmt;
use std::io;
use std::path::Path;

use sha2::{Digest, Sha256};

use super::evaluate::{Evaluator, stage_of};
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
    server_revision: Option<u64>,
    evaluator: Evaluator,
}

impl Document {
    /// Reads and checks the document at `path`; the error names the file and everything that is wrong with it.
    pub fn read(path: &Path) -> Result<Self, String> {
        super::store::load(path)
    }

    /// Checks a whole document and reports every fault in it at once.
    pub fn parse(text: &str) -> Result<Self, Vec<Fault>> {
        Self::compile(text.to_owned(), format!("file:{}", hash(text, 6)), None)
    }

    /// The same for the four flags as a server has told them, under the number that it gives its revisions.
    pub(super) fn of_server(text: String, revision: Option<u64>) -> Result<Self, Vec<Fault>> {
        let name = match revision {
            // With the hash, because a server's flags may be newer than the number that comes with them, and some of
            // them may be older, kept here.
            Some(number) => format!("unleash:{number}:{}", hash(&text, 4)),
            None => format!("unleash:{}", hash(&text, 6)),
        };
        Self::compile(text, name, revision)
    }

    fn compile(text: String, revision: String, server_revision: Option<u64>) -> Result<Self, Vec<Fault>> {
        let root: Node = serde_json::from_str(&text).map_err(|error| vec![not_json(&error)])?;
        schema::check(&root)?;
        let evaluator = Evaluator::compile(&text)?;
        Ok(Self { text, revision, server_revision, evaluator })
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

    /// The same, telling `asked` each flag that was asked and its answer.
    pub(super) fn stage_asking(&self, account: &str, kind: &str, asked: impl Fn(Flag, bool)) -> Stage {
        stage_of(|flag| {
            let on = self.evaluator.is_on(flag, account, kind);
            asked(flag, on);
            on
        })
    }

    /// Names what the document says. From a file: `file:` and the first 12 hex digits of the text's SHA-256. From Unleash:
    /// `unleash:`, its revision and the first 8 of the four flags' SHA-256, with a colon between.
    pub fn revision(&self) -> &str {
        &self.revision
    }

    /// The revision's number, where a server numbers them. It grows with every change there, of other flags too.
    pub fn server_revision(&self) -> Option<u64> {
        self.server_revision
    }

    /// The text as it was read; of a server's the four flags alone, as a file would hold them.
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

/// The first bytes of the text's SHA-256 in hex.
fn hash(text: &str, bytes: usize) -> String {
    Sha256::digest(text).iter().take(bytes).map(|byte| format!("{byte:02x}")).collect()
}

fn not_json(error: &serde_json::Error) -> Fault {
    let full = error.to_string();
    // The text of the error ends with the place, which is the path here.
    let message = full.split(" at line ").next().unwrap_or(&full);
    Fault::new(&format!("line {}, column {}", error.line(), error.column()), format_args!("not JSON: {message}"))
}
