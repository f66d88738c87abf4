//! Documents that can drift are compared with what they document. `UPDATE_DOCS=1 cargo test` writes them anew.

use std::path::Path;

use clap::{CommandFactory, Parser};
use crossover::cli::Cli;
#[cfg(feature = "temporal")]
use crossover::metrics::Metrics;

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// Compares a generated page with the committed one.
pub fn same(page: &str, wanted: &str) {
    let path = root().join(page);
    if std::env::var_os("UPDATE_DOCS").is_some() {
        std::fs::write(&path, wanted).unwrap();
    }
    let found = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(found == wanted, "{page} has drifted; UPDATE_DOCS=1 cargo test writes it anew");
}

// The page describes the program as it is built by default.
#[cfg(feature = "temporal")]
#[test]
fn the_page_of_metrics_lists_every_metric_with_its_help() {
    let mut page =
        "# Metrics\n\nGenerated from `src/metrics.rs`. Durations are in seconds. Accounts are never labels.\n\n\
        | metric | labels | what it says |\n| --- | --- | --- |\n"
            .to_owned();
    for metric in Metrics::new().unwrap().documented() {
        page += &format!("| `{}` | {} | {} |\n", metric.name, metric.labels.join(", "), metric.help);
    }
    same("docs/metrics.md", &page);
}

#[test]
fn the_page_of_commands_is_the_programs_own_help() {
    let mut page = "# Commands\n\nGenerated from the program's own help.\n".to_owned();
    for command in Cli::command().term_width(100).get_subcommands_mut().filter(|c| !c.is_hide_set()) {
        let name = command.get_name().to_owned();
        let mut command = command.clone().bin_name(format!("crossover {name}")).term_width(100);
        page += &format!("\n## crossover {name}\n\n```text\n{}```\n", command.render_long_help());
    }
    same("docs/commands.md", &page);
}

#[test]
fn the_page_of_settings_is_the_example_file_in_tables() {
    let example = std::fs::read_to_string(root().join("crossover.example.toml")).unwrap();
    same("docs/configuration.md", &settings(&example));
}

/// The example file as a page: a table a section, with the default, the variable and the comment of every key.
fn settings(example: &str) -> String {
    let mut page =
        "# Configuration\n\nGenerated from `crossover.example.toml`. Every fault of a file is reported at once by \
                    `crossover doctor`; an unknown key is a fault.\n"
            .to_owned();
    let table = "\n| key | default | variable | what it is |\n| --- | --- | --- | --- |\n";
    let (mut section, mut comment) = (String::new(), String::new());
    let mut open = false;
    for line in example.lines() {
        let key = line.trim_start_matches('#').split_once(" = ").filter(|_| !line.starts_with("# "));
        if let Some(name) = line.trim_start_matches('#').strip_prefix('[').filter(|_| !line.starts_with("# ")) {
            section = name.trim_matches(['[', ']']).to_owned();
            page += &format!("\n## `{}`\n", line.trim_start_matches('#'));
            if !comment.is_empty() {
                page += &format!("\n{comment}\n");
            }
            (open, comment) = (false, String::new());
        } else if let Some((key, default)) = key {
            if !open {
                page += table;
                open = true;
            }
            let path = if section.is_empty() { key.to_owned() } else { format!("{section}_{key}") };
            let variable = format!("CROSSOVER_{}", path.replace('.', "_").to_uppercase());
            let default = if line.starts_with('#') { "–".to_owned() } else { format!("`{default}`") };
            page += &format!("| `{key}` | {default} | `{variable}` | {} |\n", comment.replace('|', "\\|"));
            comment.clear();
        } else if let Some(text) = line.strip_prefix("# ") {
            comment = [comment.as_str(), text].join(" ").trim().to_owned();
        } else {
            comment.clear();
        }
    }
    page
}

/// The third-level headings of a section, in their order.
fn headings(page: &str, section: &str) -> Vec<String> {
    let text = std::fs::read_to_string(root().join(page)).unwrap();
    let (_, rest) = text.split_once(&format!("\n## {section}\n")).unwrap();
    let section = rest.split("\n## ").next().unwrap();
    section.lines().filter_map(|line| line.strip_prefix("### ")).map(str::to_owned).collect()
}

#[test]
fn the_page_of_divergences_has_a_section_for_each_verdict_and_class() {
    use crossover::comparator::{Class, Verdict};
    let verdicts: Vec<_> = Verdict::ALL.iter().map(|verdict| verdict.as_str()).collect();
    assert_eq!(headings("docs/divergences.md", "Verdicts"), verdicts);
    let classes: Vec<_> = Class::ALL.iter().map(|class| class.as_str()).collect();
    assert_eq!(headings("docs/divergences.md", "Classes"), classes);
    for class in classes {
        assert!(!crossover::report::meaning(class).contains("divergences.md"), "why does not say what {class} means");
    }
}

#[test]
fn every_command_in_the_readme_and_the_docs_is_one() {
    let mut pages = vec![root().join("README.md")];
    pages.extend(markdown("docs").into_iter().chain(markdown("docs/runbook")));
    let mut seen = 0;
    for page in &pages {
        let text = std::fs::read_to_string(page).unwrap();
        for block in text.split("```sh\n").skip(1) {
            for line in block.split("```").next().unwrap().lines() {
                let Some(arguments) = arguments(line) else { continue };
                let parsed = Cli::try_parse_from(&arguments);
                assert!(parsed.is_ok(), "{}: `{line}`: {}", page.display(), parsed.err().unwrap());
                seen += 1;
            }
        }
        for inline in text.split('`').filter(|text| text.starts_with("crossover ") && !text.contains(['\n', '…'])) {
            let named: Vec<_> = inline.split_whitespace().map(example).collect();
            // Without arguments it only names the command.
            let parsed = if named.len() > 2 { Cli::try_parse_from(&named).map(drop) } else { is_one(named[1]) };
            assert!(parsed.is_ok(), "{}: `{inline}`: {}", page.display(), parsed.unwrap_err());
        }
    }
    assert!(seen >= 5, "only {seen} commands were found; is the README still written with ```sh blocks?");
}

#[test]
fn the_readme_names_every_command_and_leads_to_every_page() {
    let readme = std::fs::read_to_string(root().join("README.md")).unwrap();
    for command in Cli::command().get_subcommands().filter(|command| !command.is_hide_set()) {
        let name = format!("crossover {}", command.get_name());
        assert!(readme.contains(&name) || readme.contains(&format!("-- {}", command.get_name())), "{name}");
    }
    let links: Vec<&str> = readme.split("](").skip(1).map(|rest| rest.split(')').next().unwrap()).collect();
    for link in &links {
        assert!(root().join(link).exists(), "README.md leads to {link}, which is not there");
    }
    for page in markdown("docs").iter().chain(&markdown("dashboards")) {
        let page = page.strip_prefix(root()).unwrap().to_str().unwrap();
        assert!(links.contains(&page), "README.md does not lead to {page}");
    }
    assert!(links.contains(&"docs/runbook/README.md"));
}

/// The pages of a folder.
fn markdown(folder: &str) -> Vec<std::path::PathBuf> {
    let files = std::fs::read_dir(root().join(folder)).unwrap().map(|entry| entry.unwrap().path());
    files.filter(|path| path.extension().is_some_and(|e| e == "md")).collect()
}

#[test]
fn an_override_is_not_asked_for_without_a_reason_and_a_time() {
    let asked = |line: &str| Cli::try_parse_from(line.split(' ')).is_ok();
    assert!(asked("crossover override acme --stage shadow --for 2h --reason away"));
    assert!(!asked("crossover override acme --stage shadow --for 2h"));
    assert!(!asked("crossover override acme --stage shadow --reason away"));
}

/// Something for a placeholder.
fn example(word: &str) -> &str {
    match word {
        "ID" => "6fd1a3a0-8a3e-4a4c-9c55-6ad1f3b1f6f1",
        "STAGE" => "shadow",
        "TIME" => "2h",
        word => word,
    }
}

fn is_one(command: &str) -> Result<(), clap::Error> {
    let known = Cli::command().find_subcommand(command).is_some();
    if known { Ok(()) } else { Err(Cli::command().error(clap::error::ErrorKind::InvalidSubcommand, command)) }
}

/// The arguments of a line that runs crossover, behind variables and without comments and redirections.
fn arguments(line: &str) -> Option<Vec<String>> {
    let line = line.split(" #").next()?.split(['>', '|', '&']).next()?;
    let words: Vec<&str> = line.split_whitespace().skip_while(|word| word.contains('=')).collect();
    let rest = match words.as_slice() {
        ["cargo", "run", "--release", "--", rest @ ..] | ["crossover", rest @ ..] => rest,
        _ => return None,
    };
    Some(std::iter::once("crossover").chain(rest.iter().copied()).map(str::to_owned).collect())
}
