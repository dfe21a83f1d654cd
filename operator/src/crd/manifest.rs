//! What the API server would say to a manifest, without an API server: structure, then defaults,
//! then CEL rules.

use serde_json::Value;

use kube::CustomResourceExt as _;

use super::SseChannel;

/// Everything that is wrong with a manifest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problems(pub Vec<Problem>);

/// One thing that is wrong with a manifest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// Path of the field, like `spec.stream.replicas`.
    pub field: String,
    /// What must be the case.
    pub message: String,
}

impl std::fmt::Display for Problems {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        for (i, problem) in self.0.iter().enumerate() {
            let separator = if i == 0 { "" } else { "; " };
            write!(f, "{separator}{}: {}", problem.field, problem.message)?;
        }
        Ok(())
    }
}

impl std::error::Error for Problems {}

/// Reads a manifest as the API server would: unknown fields and wrong types are refused (field
/// validation `Strict`, as kubectl asks for), defaults are filled in, CEL rules are run.
///
/// # Errors
/// [`Problems`] with all that was found.
pub fn read(manifest: &Value) -> Result<SseChannel, Problems> {
    let schema = schema();
    let mut problems = Vec::new();
    // apiVersion, kind and metadata have a schema of their own in Kubernetes.
    for part in ["spec", "status"] {
        if let (Some(schema), Some(value)) = (property(&schema, part), manifest.get(part)) {
            structure(schema, value, part, &mut problems);
        }
    }
    if manifest.get("spec").is_none() {
        problems.push(Problem {
            field: "spec".to_owned(),
            message: "is missing; `spec: {}` takes every default".to_owned(),
        });
    }
    if !problems.is_empty() {
        return Err(Problems(problems));
    }
    let channel: SseChannel = serde_json::from_value(manifest.clone()).map_err(|e| {
        Problems(vec![Problem { field: "manifest".to_owned(), message: e.to_string() }])
    })?;
    rules(&channel, None)?;
    Ok(channel)
}

/// Runs the CEL rules of the definition; with `old` also those about what may change.
///
/// # Errors
/// [`Problems`] with each rule that does not hold.
pub fn rules(channel: &SseChannel, old: Option<&SseChannel>) -> Result<(), Problems> {
    let result = match old {
        None => channel.validate_cel(),
        Some(old) => channel.validate_cel_update(old),
    };
    result.map_err(|errors| {
        let problem = |e: &kube::core::cel::ValidationError| Problem {
            field: e.field_path.clone(),
            message: e.message.clone(),
        };
        Problems(errors.iter().map(problem).collect())
    })
}

fn schema() -> Value {
    SseChannel::crd()
        .spec
        .versions
        .into_iter()
        .next()
        .and_then(|version| version.schema)
        .and_then(|schema| schema.open_api_v3_schema)
        .and_then(|schema| serde_json::to_value(schema).ok())
        .unwrap_or_default()
}

fn property<'s>(schema: &'s Value, name: &str) -> Option<&'s Value> {
    schema.get("properties")?.get(name)
}

/// What stands against a value that is a number or a text, of `most` characters.
fn number_or_text(value: &Value, most: Option<usize>) -> Option<String> {
    match (value, most) {
        (Value::String(text), Some(most)) if text.chars().count() > most => {
            Some(format!("must be at most {most} characters long"))
        }
        (Value::String(_), _) => None,
        (Value::Number(number), _) if number.is_i64() || number.is_u64() => None,
        (Value::Number(number), _) => Some(format!(
            "must be a whole number or a text: put {number} in quotes, or write it as in 500m"
        )),
        _ => Some("must be a whole number or a text".to_owned()),
    }
}

/// The part of OpenAPI that this project's definition uses.
fn structure(schema: &Value, value: &Value, path: &str, problems: &mut Vec<Problem>) {
    let mut fail = |message: String| problems.push(Problem { field: path.to_owned(), message });
    let limit =
        |key: &str| schema.get(key).and_then(Value::as_u64).and_then(|n| usize::try_from(n).ok());
    if value.is_null() {
        return; // the API server drops nulls before defaults
    }
    if let Some(allowed) = schema.get("enum").and_then(Value::as_array)
        && !allowed.contains(value)
    {
        let names: Vec<_> = allowed.iter().filter_map(Value::as_str).collect();
        return fail(format!("must be one of {}", names.join(", ")));
    }
    if schema.get("x-kubernetes-int-or-string").and_then(Value::as_bool) == Some(true) {
        return number_or_text(value, limit("maxLength")).into_iter().for_each(fail);
    }
    match (schema.get("type").and_then(Value::as_str), value) {
        (Some("object"), Value::Object(map)) => {
            if limit("maxProperties").is_some_and(|max| map.len() > max) {
                fail(format!(
                    "must have at most {} entries",
                    limit("maxProperties").unwrap_or_default()
                ));
            }
            object(schema, map, path, problems);
        }
        (Some("array"), Value::Array(items)) => {
            if limit("maxItems").is_some_and(|max| items.len() > max) {
                fail(format!("must have at most {} items", limit("maxItems").unwrap_or_default()));
            }
            if limit("minItems").is_some_and(|min| items.len() < min) {
                fail(format!("must have at least {} items", limit("minItems").unwrap_or_default()));
            }
            let is_set =
                schema.get("x-kubernetes-list-type").and_then(Value::as_str) == Some("set");
            let mut before = items.iter().enumerate();
            if is_set && before.any(|(i, item)| items[..i].contains(item)) {
                fail("must not name the same item twice".to_owned());
            }
            if let Some(schema) = schema.get("items") {
                for (i, item) in items.iter().enumerate() {
                    structure(schema, item, &format!("{path}[{i}]"), problems);
                }
            }
        }
        (Some("string"), Value::String(text)) => {
            let length = text.chars().count();
            if limit("maxLength").is_some_and(|max| length > max) {
                fail(format!(
                    "must be at most {} characters long",
                    limit("maxLength").unwrap_or_default()
                ));
            }
            if limit("minLength").is_some_and(|min| length < min) {
                fail("must not be empty".to_owned());
            }
        }
        (Some("integer"), Value::Number(number)) if number.is_i64() || number.is_u64() => {
            let bound = |key: &str| schema.get(key).and_then(Value::as_f64);
            let number = number.as_f64().unwrap_or_default();
            if let Some(min) = bound("minimum").filter(|min| number < *min) {
                fail(format!("must be at least {min}"));
            }
            if let Some(max) = bound("maximum").filter(|max| number > *max) {
                fail(format!("must be at most {max}"));
            }
        }
        (Some("boolean"), Value::Bool(_)) | (None, _) => {}
        (Some(kind), _) => fail(format!("must be of type {kind}")),
    }
}

fn object(
    schema: &Value,
    map: &serde_json::Map<String, Value>,
    path: &str,
    problems: &mut Vec<Problem>,
) {
    let free =
        schema.get("x-kubernetes-preserve-unknown-fields").and_then(Value::as_bool) == Some(true);
    let required = schema
        .get("required")
        .and_then(Value::as_array)
        .into_iter()
        .flatten()
        .filter_map(Value::as_str);
    for name in required.filter(|name| !map.contains_key(*name)) {
        problems
            .push(Problem { field: format!("{path}.{name}"), message: "is missing".to_owned() });
    }
    for (name, value) in map {
        let path = format!("{path}.{name}");
        match property(schema, name)
            .or_else(|| schema.get("additionalProperties").filter(|s| s.is_object()))
        {
            Some(schema) => structure(schema, value, &path, problems),
            None if free => {}
            None => problems.push(Problem { field: path, message: unknown(schema, name) }),
        }
    }
}

/// An unknown field is mostly a typing error: name the nearest one that exists.
fn unknown(schema: &Value, name: &str) -> String {
    let known = schema
        .get("properties")
        .and_then(Value::as_object)
        .into_iter()
        .flat_map(serde_json::Map::keys);
    match known.map(|k| (distance(k, name), k)).min().filter(|(distance, _)| *distance <= 3) {
        Some((_, near)) => format!("is no field of an SseChannel; did you mean {near}?"),
        None => "is no field of an SseChannel; remove it".to_owned(),
    }
}

/// Levenshtein's distance, ignoring case.
pub(crate) fn distance(a: &str, b: &str) -> usize {
    let (a, b): (Vec<_>, Vec<_>) =
        (a.to_lowercase().chars().collect(), b.to_lowercase().chars().collect());
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.iter().enumerate() {
        let mut next = vec![i + 1];
        for (j, y) in b.iter().enumerate() {
            let replace = row.get(j).copied().unwrap_or_default() + usize::from(x != y);
            let insert = next.get(j).copied().unwrap_or_default() + 1;
            let delete = row.get(j + 1).copied().unwrap_or_default() + 1;
            next.push(replace.min(insert).min(delete));
        }
        row = next;
    }
    row.last().copied().unwrap_or_default()
}
