//! Log lines have a subject: which channel, connection or thread a line is about.

use syn::visit::{self, Visit};

use crate::tree;

/// Where lines are logged outside a channel's span, and the fields of which each has one.
const FIELDS: &[(&str, &[&str])] = &[
    ("dataplane/src/fanout", &["channel", "thread"]),
    ("dataplane/src/subscriber", &["channel"]),
    ("dataplane/src/source/jetstream/connect.rs", &["server", "urls"]),
    ("dataplane/src/server/accept.rs", &["peer", "error"]),
];

/// What enters the span of a channel: `(file, what calls into the channel's code, the span)`. Every
/// statement with such a call is instrumented.
const ENTRIES: &[(&str, &str, &str)] = &[
    ("dataplane/src/log.rs", "self.history.segment(", ".instrument(self.span.clone())"),
    ("dataplane/src/log/newest.rs", "self.history.segment(", ".instrument(self.span.clone())"),
    ("dataplane/src/log/stretch.rs", "get_or_insert_async(", ".instrument(self.span.clone())"),
    ("dataplane/src/log/reader.rs", "run_until_cancelled(", ".instrument(log.span.clone())"),
    ("operator/src/controller.rs", "led(&channel", ".instrument(span(&channel))"),
];

/// The tokens of each call of a macro of `tracing` that logs.
#[derive(Default)]
struct Lines(Vec<String>);

impl<'ast> Visit<'ast> for Lines {
    fn visit_macro(&mut self, invocation: &'ast syn::Macro) {
        let path: Vec<_> = invocation.path.segments.iter().map(|s| s.ident.to_string()).collect();
        let level = path.last().map(String::as_str).unwrap_or_default();
        if path.first().is_some_and(|first| first == "tracing")
            && ["error", "warn", "info", "debug", "trace"].contains(&level)
        {
            self.0.push(invocation.tokens.to_string());
        }
        visit::visit_macro(self, invocation);
    }
}

/// Whether `name` stands among the fields: before `=` or `,`, perhaps behind `%` or `?`.
fn has_field(tokens: &str, name: &str) -> bool {
    let fields = tokens.split('"').next().unwrap_or_default();
    let words: Vec<_> = fields.split_whitespace().collect();
    words.windows(2).any(|pair| pair[0] == name && ["=", ","].contains(&pair[1]))
}

#[test]
fn log_lines_outside_a_span_name_their_subject() {
    let (mut findings, mut seen) = (Vec::new(), 0);
    for file in tree::product() {
        let Some((_, fields)) = FIELDS.iter().find(|(path, _)| file.path.starts_with(path)) else {
            continue;
        };
        let text: Vec<_> = file.product_lines().into_iter().map(|(_, line)| line).collect();
        let parsed = syn::parse_file(&text.join("\n"));
        let mut lines = Lines::default();
        lines.visit_file(&parsed.unwrap_or_else(|e| panic!("{}: {e}", file.path)));
        for line in lines.0 {
            seen += 1;
            if !fields.iter().any(|field| has_field(&line, field)) {
                findings.push(format!("{}: {line}", file.path));
            }
        }
    }
    assert!(seen > 10, "only {seen} log lines found");
    tree::report(
        "A log line that no span surrounds has a field that names its subject (FIELDS says which).",
        &findings,
    );
}

#[test]
fn the_code_of_a_channel_runs_in_its_span() {
    let mut findings = Vec::new();
    for (path, call, span) in ENTRIES {
        let text = tree::read(path);
        let statements: Vec<_> = text.split(';').filter(|part| part.contains(call)).collect();
        if statements.is_empty() {
            findings.push(format!("{path}: no `{call}`; did it move?"));
        }
        for statement in statements.iter().filter(|statement| !statement.contains(span)) {
            findings.push(format!("{path}: {} without `{span}`", statement.trim()));
        }
    }
    tree::report("What a channel's code logs is in the channel's span.", &findings);
}
