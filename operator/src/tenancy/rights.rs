//! What the channels of one namespace may ask for, and what one of them asks for.

use sluice_channel::{ChannelName, StreamName, name};

use super::grant::{Grant, PREFIX, Size, covers};
use crate::crd::{SseChannel, stream::Adoption};

/// What a channel asks for, as far as others are concerned.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ask {
    /// Subjects.
    pub subjects: Vec<String>,
    /// The stream that the spec names.
    pub named: Option<String>,
    /// The stream, by its default name where the spec names none.
    pub stream: String,
    /// Whether a stream without an owner is to be taken over.
    pub adopts: bool,
    /// `maxBytes`.
    pub max_bytes: Size,
    /// Copies.
    pub replicas: u64,
}

impl Ask {
    /// What `channel` asks for; `None` where its spec is none that can be made.
    #[must_use]
    pub fn of(channel: &SseChannel) -> Option<Self> {
        let namespace = channel.metadata.namespace.as_deref()?;
        let name = ChannelName::new(channel.metadata.name.clone()?).ok()?;
        let spec = &channel.spec.stream;
        let named = Some(spec.name.clone()).filter(|name| !name.is_empty());
        let derived = || StreamName::derived(namespace, &name).to_string();
        Some(Self {
            subjects: match spec.subjects.as_slice() {
                [] => vec![name::default_subject(namespace, &name)],
                subjects => subjects.iter().map(|subject| subject.0.clone()).collect(),
            },
            stream: named.clone().unwrap_or_else(derived),
            named,
            adopts: spec.adoption == Adoption::IfUnowned,
            max_bytes: spec.max_bytes.0.parse().ok()?,
            replicas: u64::try_from(spec.replicas).ok()?,
        })
    }

    /// Bytes that the stream reserves.
    #[must_use]
    pub fn reserves(&self) -> u64 {
        self.max_bytes.bytes.saturating_mul(self.replicas)
    }
}

/// Something that a namespace may not ask for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal {
    /// What, and what to do about it: the admission policy's words.
    pub message: String,
    /// The annotation that grants it, without the prefix, and what to add to it; `None` where none
    /// does.
    pub annotation: Option<(&'static str, String)>,
}

/// What the channels of a namespace may ask for.
#[derive(Debug, Clone)]
pub struct Rights {
    namespace: String,
    grant: Grant,
    max_bytes: Size,
    quota: Size,
    unread: Option<String>,
}

impl Rights {
    pub(super) fn new(namespace: &str, grant: Grant, max_bytes: &Size, quota: &Size) -> Self {
        Self {
            namespace: namespace.to_owned(),
            max_bytes: grant.max_bytes.clone().unwrap_or_else(|| max_bytes.clone()),
            quota: grant.quota.clone().unwrap_or_else(|| quota.clone()),
            grant,
            unread: None,
        }
    }

    /// The same, where the Namespace could not be read; `why` goes into every refusal.
    pub(super) fn unread(self, why: String) -> Self {
        Self { unread: Some(why), ..self }
    }

    /// Most that all streams of the namespace may reserve.
    #[must_use]
    pub const fn quota(&self) -> &Size {
        &self.quota
    }

    /// UID of the owner whose mark on the stream may become that of a channel of this namespace.
    #[must_use]
    pub fn take_over(&self, stream: &str) -> Option<&str> {
        let granted = self.grant.take_over.iter().find(|one| one.stream == stream);
        granted.map(|one| one.owner.as_str())
    }

    /// NATS servers that channels of this namespace may name for themselves.
    #[must_use]
    pub fn nats(&self) -> &[String] {
        &self.grant.nats
    }

    /// What of `ask` is refused; the first is the one that the admission policy tells.
    #[must_use]
    pub fn refusals(&self, ask: &Ask) -> Vec<Refusal> {
        let all = [self.subjects(ask), self.name(ask), self.size(ask)];
        all.into_iter().flatten().collect()
    }

    /// What of `ask` is refused, in one text; `None` where nothing is.
    #[must_use]
    pub fn refused(&self, ask: &Ask) -> Option<String> {
        let refusals = self.refusals(ask);
        let problems = self.grant.problems.iter().map(|problem| format!("note that {problem}"));
        let notes = self.unread.iter().cloned().chain(problems);
        let told: Vec<_> =
            refusals.iter().map(|refusal| refusal.message.clone()).chain(notes).collect();
        (!refusals.is_empty()).then(|| told.join("; "))
    }

    pub(super) fn namespace(&self) -> &str {
        &self.namespace
    }

    /// The grant `key` as it would be with `value`.
    pub(super) fn with(&self, key: &str, value: &str) -> String {
        let known = match key {
            "subjects" => self.grant.subjects.as_slice(),
            "adopt" => self.grant.adopt.as_slice(),
            _ => return value.to_owned(),
        };
        let all: Vec<_> = known.iter().map(String::as_str).chain([value]).collect();
        all.join(",")
    }

    fn to_grant(&self, key: &'static str) -> String {
        format!("set the annotation {PREFIX}{key} of Namespace {} to grant it", self.namespace)
    }

    fn subjects(&self, ask: &Ask) -> Vec<Refusal> {
        let namespace = &self.namespace;
        let own = format!("sse.{namespace}.");
        // With its last dot it is whole words: no other namespace's name begins so.
        let foreign: Vec<_> =
            ask.subjects.iter().filter(|subject| !subject.starts_with(&own)).collect();
        // What may be taken by another namespace's channel is never granted, whatever a grant says.
        let (reserved, others): (Vec<_>, Vec<_>) = foreign
            .into_iter()
            .partition(|subject| matches!(subject.split('.').next(), Some("sse" | "*" | ">")));
        let granted =
            |subject: &str| self.grant.subjects.iter().any(|pattern| covers(pattern, subject));
        let ungranted: Vec<_> = others.into_iter().filter(|subject| !granted(subject)).collect();
        let mut refusals = Vec::new();
        if !reserved.is_empty() {
            let message = format!(
                "spec.stream.subjects: {} may take events of other namespaces, which no annotation grants: use subjects that begin with \"{own}\"",
                quoted(&reserved)
            );
            refusals.push(Refusal { message, annotation: None });
        }
        if !ungranted.is_empty() {
            let message = format!(
                "spec.stream.subjects: {} neither begins with \"{own}\" nor is granted to the namespace: {}",
                quoted(&ungranted),
                self.to_grant("subjects")
            );
            let added: Vec<_> = ungranted.iter().map(|subject| subject.as_str()).collect();
            refusals.push(Refusal { message, annotation: Some(("subjects", added.join(","))) });
        }
        refusals
    }

    fn name(&self, ask: &Ask) -> Vec<Refusal> {
        let own = format!("sse_{}_", self.namespace);
        let named = ask.named.as_deref().unwrap_or_default();
        let granted = self.grant.adopt.iter().any(|stream| stream == named);
        // A stream that changes hands keeps its name.
        let is_own = named.is_empty() || named.starts_with(&own) || self.take_over(named).is_some();
        if !is_own && is_of_a_namespace(named) {
            let message = format!(
                "spec.stream.name: \"{named}\" is the name of another namespace's stream, which may not be adopted: use a name that begins with \"{own}\", or none"
            );
            return vec![Refusal { message, annotation: None }];
        }
        if !is_own && !granted {
            let message = format!(
                "spec.stream.name: \"{named}\" neither begins with \"{own}\" nor is granted to the namespace: {}",
                self.to_grant("adopt")
            );
            return vec![Refusal { message, annotation: Some(("adopt", named.to_owned())) }];
        }
        if ask.adopts && !granted {
            let message = format!(
                "spec.stream.adoption: streams that are named in the annotation {PREFIX}adopt of Namespace {} may be adopted, and spec.stream.name \"{named}\" is not among them",
                self.namespace
            );
            let annotation = ask.named.clone().map(|named| ("adopt", named));
            return vec![Refusal { message, annotation }];
        }
        Vec::new()
    }

    fn size(&self, ask: &Ask) -> Vec<Refusal> {
        if ask.max_bytes.bytes <= self.max_bytes.bytes {
            return Vec::new();
        }
        let (asked, most) = (&ask.max_bytes.text, &self.max_bytes.text);
        let message = format!(
            "spec.stream.maxBytes: {asked} is more than {most}, the most that a channel of the namespace may have: {}",
            self.to_grant("max-bytes")
        );
        vec![Refusal { message, annotation: Some(("max-bytes", asked.clone())) }]
    }
}

fn quoted(subjects: &[&String]) -> String {
    let quoted: Vec<_> = subjects.iter().map(|subject| format!("\"{subject}\"")).collect();
    quoted.join(", ")
}

/// Whether the stream name has the form of a default one.
fn is_of_a_namespace(stream: &str) -> bool {
    let head = stream.strip_prefix("sse_").and_then(|rest| rest.split_once('_'));
    head.is_some_and(|(namespace, _)| {
        !namespace.is_empty()
            && namespace.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
    })
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use serde_json::{Value, json};

    use super::*;
    use crate::{
        crd::manifest,
        tenancy::{Mode, Settings},
    };

    fn refusals(annotations: &[(&str, &str)], stream: &Value) -> Vec<Refusal> {
        let settings = Settings {
            mode: Mode::Isolated,
            max_bytes: "10Gi".parse().unwrap(),
            quota: "50Gi".parse().unwrap(),
            grants: BTreeMap::new(),
        };
        let annotations: BTreeMap<_, _> =
            annotations.iter().map(|(k, v)| (format!("{PREFIX}{k}"), (*v).to_owned())).collect();
        // Not read by `manifest`: the rules of the definition are not asked here.
        let mut channel =
            manifest::read(&json!({"apiVersion": "sluice.dev/v1alpha1", "kind": "SseChannel",
            "metadata": {"name": "c", "namespace": "shop"}, "spec": {}}))
            .unwrap();
        channel.spec.stream = serde_json::from_value(stream.clone()).unwrap();
        settings.rights("shop", &annotations).refusals(&Ask::of(&channel).unwrap())
    }

    const EVERYTHING: [(&str, &str); 2] =
        [("subjects", ">,*.>,sse.>,sse.*.>,sse.other.>,sse.*.*"), ("adopt", "sse_other_x_1")];

    #[test]
    fn a_namespace_has_the_subjects_below_its_name_word_by_word() {
        for subject in ["sse.shop.a", "sse.shop.>", "sse.shop.*", "sse.shop.a.*.>"] {
            assert_eq!(refusals(&[], &json!({"subjects": [subject]})), [], "{subject}");
        }
        for subject in
            ["sse.shop2.a", "sse.sho.a", "sse.shop", "sse", "Sse.shop.a", "a.sse.shop.b", "a.>"]
        {
            assert_eq!(refusals(&[], &json!({"subjects": [subject]})).len(), 1, "{subject}");
        }
    }

    #[test]
    fn no_grant_covers_what_another_namespace_may_have() {
        for subject in [
            ">",
            "*",
            "*.>",
            "*.shop.>",
            "*.*.orders",
            "sse.>",
            "sse.*",
            "sse.*.orders",
            "sse.other.>",
            "sse.shop2.>",
            "sse.other",
            "sse",
        ] {
            let refused = refusals(&EVERYTHING, &json!({"subjects": [subject]}));
            assert_eq!(refused.len(), 1, "{subject}");
            assert_eq!(refused[0].annotation, None, "{subject}");
        }
        let stream = json!({"name": "sse_other_x_1", "adoption": "IfUnowned"});
        assert_eq!(refusals(&EVERYTHING, &stream)[0].annotation, None);
        assert_eq!(refusals(&EVERYTHING, &json!({"subjects": ["payments.>", "a"]})), []);
    }

    /// The same table is asked of the chart's admission policy.
    #[test]
    fn the_admission_policy_s_table_holds_here() {
        let table =
            include_str!("../../../tests/operator/tenancy/grants.yaml").replace("NS", "shop");
        let rows: Vec<Value> = serde_saphyr::from_str(&table).unwrap();
        assert!(rows.len() > 20, "{}", rows.len());
        for row in rows {
            let grant: Vec<(&str, &str)> = row["grant"]
                .as_object()
                .unwrap()
                .iter()
                .map(|(key, value)| (key.as_str(), value.as_str().unwrap()))
                .collect();
            assert_eq!(refusals(&grant, &row["good"]), [], "{row}");
            assert_ne!(refusals(&grant, &row["bad"]), [], "{row}");
        }
    }

    #[test]
    fn a_grant_does_what_it_says_and_no_more() {
        let grant = [
            ("subjects", "telemetry.>"),
            ("adopt", "ORDERS"),
            ("max-bytes", "50Gi"),
            ("take-over", "sse_other_moved_1=6f1c"),
        ];
        for (stream, refused) in [
            (json!({"subjects": ["telemetry.*.*", "sse.shop.x"]}), None),
            (json!({"subjects": ["telemetry.a", "payments.>"]}), Some(("subjects", "payments.>"))),
            (json!({"subjects": ["telemetry"]}), Some(("subjects", "telemetry"))),
            (json!({"name": "ORDERS", "adoption": "IfUnowned"}), None),
            (json!({"name": "ORDERS"}), None),
            (json!({"name": "ORDERS2"}), Some(("adopt", "ORDERS2"))),
            (json!({"name": "sse_other_moved_1"}), None),
            (json!({"name": "sse_shop_mine"}), None),
            (
                json!({"name": "sse_shop_mine", "adoption": "IfUnowned"}),
                Some(("adopt", "sse_shop_mine")),
            ),
            (json!({"maxBytes": "50Gi"}), None),
            (json!({"maxBytes": "51Gi"}), Some(("max-bytes", "51Gi"))),
        ] {
            let refusals = refusals(&grant, &stream);
            let told = refusals.first().and_then(|r| r.annotation.clone());
            assert_eq!(told, refused.map(|(k, v)| (k, v.to_owned())), "{stream}");
            assert_eq!(refusals.len(), usize::from(refused.is_some()), "{stream}");
        }
        // Without a name there is nothing that an annotation could name.
        let refused = super::tests::refusals(&grant, &json!({"adoption": "IfUnowned"}));
        assert_eq!((refused.len(), refused[0].annotation.clone()), (1, None));
    }
}
