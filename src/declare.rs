//! `drophammer apply`, `get` and `delete`: what is declared about machines.

use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use clap::ValueEnum;
use drophammer_control::client::{Client, Put};
use drophammer_protocol::resource::{
    ImagePolicy, ImageSource, Kind as _, NamedLayout, Partition, Project, Reservation, Size, Tenant,
};
use serde_json::{Map, Value};

use crate::output::{self, Format};
use crate::server;

/// In the order in which they need each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, ValueEnum)]
pub(crate) enum Kind {
    #[value(alias = "tenants")]
    Tenant,
    #[value(alias = "projects")]
    Project,
    #[value(alias = "partitions")]
    Partition,
    #[value(alias = "sizes")]
    Size,
    #[value(alias = "layouts")]
    Layout,
    #[value(alias = "image-sources")]
    ImageSource,
    #[value(alias = "image-policies")]
    ImagePolicy,
    #[value(alias = "reservations")]
    Reservation,
}

impl Kind {
    const ALL: [Self; 8] = [
        Self::Tenant,
        Self::Project,
        Self::Partition,
        Self::Size,
        Self::Layout,
        Self::ImageSource,
        Self::ImagePolicy,
        Self::Reservation,
    ];

    fn name(self) -> &'static str {
        self.names().0
    }

    fn plural(self) -> &'static str {
        self.names().1
    }

    fn names(self) -> (&'static str, &'static str) {
        match self {
            Self::Tenant => (Tenant::NAME, Tenant::PLURAL),
            Self::Project => (Project::NAME, Project::PLURAL),
            Self::Partition => (Partition::NAME, Partition::PLURAL),
            Self::Size => (Size::NAME, Size::PLURAL),
            Self::Layout => (NamedLayout::NAME, NamedLayout::PLURAL),
            Self::ImageSource => (ImageSource::NAME, ImageSource::PLURAL),
            Self::ImagePolicy => (ImagePolicy::NAME, ImagePolicy::PLURAL),
            Self::Reservation => (Reservation::NAME, Reservation::PLURAL),
        }
    }
}

const EXAMPLE: &str = r#"A file may hold several documents, and what needs others may come before them:

  kind: tenant
  name: acme
  members: {boss@acme.org: owner}          # owner, editor, viewer or guest; in all of its projects
  ---
  kind: project
  name: web
  tenant: acme
  members: {ann@acme.org: editor}
  most_machines: 20
  erase_policy: rekey-only                 # at least this when it's through with a machine
  ---
  kind: partition                          # as boot servers call it in their configuration
  name: row-1
  dns: [10.0.0.53]                         # for firmware, agents and systems, unless they have others
  ntp: [10.0.0.123]
  racks:                                   # for spreading; by machines, by the switches they see, or by networks
    - {name: r1, switches: ["leaf1*"]}
    - {name: r2, networks: [10.0.2.0/24]}
  ---
  kind: size                               # every part of a machine has to be spoken of
  name: c1-large
  constraints:
    - {type: cores, min: 16, max: 32, identifier: "Intel Xeon Silver*"}
    - {type: memory, min: 120GiB, max: 130GiB}
    - {type: storage, min: 800GiB, max: 4TiB, identifier: "/dev/nvme*"}
    - {type: gpu, min: 1, max: 1, identifier: "H100*"}
  images: [{image: "debian-*", versions: ">= 20250101"}]
  ---
  kind: reservation
  name: web-large
  project: web
  size: c1-large
  partitions: [row-1]
  amount: 3
  ---
  kind: layout                             # as `drophammer layout check` knows them, in YAML
  name: one-drive
  constraints: {sizes: ["c1-*"]}           # used where an allocation names none
  layout:
    drive: [{name: system, partitions: [{name: esp, kind: esp}, {name: root, size: rest}]}]
    filesystem: [{on: system/root, format: ext4, mount: /}]
  ---
  kind: image-source                       # brought here by each server; `drophammer image list` says how far it is
  name: debian
  image: debian-12                         # the newest, and newer ones later; or debian-12/12.8
  store: s3://images/prod                  # of `image publish`: its signature has to be of one of the server's image_keys
  ---
  kind: image-source
  name: metal-debian
  image: metal-debian/12.20250101          # what this tarball is compiled to, by each server for itself
  url: https://images.example.org/metal-os/20250101/debian/12/img.tar.lz4
  # sha256: …                              # instead of the .sha256 or .md5 beside it; or unchecked: true
  cmdline: console=ttyS0,115200
  ---
  kind: image-policy
  name: old-debian
  images: {image: debian-11}
  classification: deprecated               # or preview, or supported
  expires: 1790000000                      # seconds since 1970"#;

/// Declare what files say: new documents are made, others changed.
#[derive(Debug, clap::Args)]
#[command(after_long_help = EXAMPLE)]
pub(crate) struct Apply {
    #[command(flatten)]
    server: server::Server,
    /// File in YAML or JSON; `-` for standard input. Can be given several times.
    #[arg(short, long = "file", value_name = "FILE", required = true)]
    files: Vec<PathBuf>,
    /// Say what would be done, and do nothing.
    #[arg(long)]
    dry_run: bool,
}

/// Show what is declared.
#[derive(Debug, clap::Args)]
pub(crate) struct Get {
    #[command(flatten)]
    server: server::Server,
    /// What kind of document.
    #[arg(value_enum)]
    kind: Kind,
    /// Which one; all, if none is named.
    name: Option<String>,
    #[command(flatten)]
    shown: output::Shown,
    /// Go on showing what changes.
    #[arg(short, long, conflicts_with = "name")]
    watch: bool,
}

/// Withdraw what was declared.
///
/// What something else still needs stays. Of an image-source nothing more is fetched or compiled, and no file is deleted:
/// machines keep what they run, what came from a store can still be installed, and what was compiled of a url can't, until
/// it's declared again.
#[derive(Debug, clap::Args)]
pub(crate) struct Delete {
    #[command(flatten)]
    server: server::Server,
    /// What kind of document.
    #[arg(value_enum)]
    kind: Kind,
    /// Which one.
    name: String,
}

pub(crate) fn apply(args: &Apply) -> Result<()> {
    let mut documents = Vec::new();
    for file in &args.files {
        documents.extend(read(file)?);
    }
    ensure!(!documents.is_empty(), "there is nothing in these files");
    documents.sort_by_key(|(kind, ..)| *kind);
    let client = args.server.connect()?;
    for (kind, name, body) in documents {
        let what = format!("{}/{name}", kind.name());
        let done = if args.dry_run {
            would(&client, kind, &name, &body)?
        } else {
            let put = client.put(kind.plural(), &name, &body).with_context(|| format!("declaring {what}"))?;
            match put {
                Put::Made => "made",
                Put::Changed => "changed",
                Put::AsItWas => "as it was",
            }
        };
        output::line(&format!("{what} {done}"))?;
    }
    Ok(())
}

fn would(client: &Client, kind: Kind, name: &str, body: &Map<String, Value>) -> Result<&'static str> {
    let Some(there) = client.document(kind.plural(), name)? else { return Ok("would be made") };
    let mut there = there;
    there.remove("meta");
    Ok(if there == *body { "is like that" } else { "would be changed" })
}

type Document = (Kind, String, Map<String, Value>);

fn read(path: &Path) -> Result<Vec<Document>> {
    let shown = path.display();
    let text = if path == Path::new("-") {
        let mut text = String::new();
        std::io::stdin().read_to_string(&mut text).context("reading standard input")?;
        text
    } else {
        fs::read_to_string(path).with_context(|| format!("reading {shown}"))?
    };
    parse(&text).with_context(|| format!("reading {shown}"))
}

fn parse(text: &str) -> Result<Vec<Document>> {
    let documents: Vec<Value> = serde_saphyr::from_multiple(text)?;
    let mut read = Vec::new();
    for (number, document) in (1..).zip(documents) {
        let Value::Object(mut fields) = document else { bail!("document {number} is no list of fields") };
        let kind = fields.remove("kind");
        let name = fields.get("name").and_then(Value::as_str).unwrap_or_default().to_owned();
        let known = Kind::ALL.into_iter().find(|known| kind.as_ref().and_then(Value::as_str) == Some(known.name()));
        let Some(kind) = known else {
            let names = Kind::ALL.map(Kind::name).join(", ");
            match kind {
                Some(kind) => bail!("document {number} ({name:?}) is of kind {kind}; there are {names}"),
                None => bail!("document {number} ({name:?}) doesn't say its kind: one of {names}"),
            }
        };
        ensure!(!name.is_empty(), "document {number}, a {}, has no name", kind.name());
        read.push((kind, name, fields));
    }
    Ok(read)
}

pub(crate) fn get(args: &Get) -> Result<()> {
    let client = args.server.connect()?;
    let kind = args.kind;
    let format = args.shown.format();
    if let Some(name) = &args.name {
        let Some(document) = client.document(kind.plural(), name)? else {
            bail!("there is no {} {name:?}; `drophammer get {}` shows which there are", kind.name(), kind.name())
        };
        return output::json(&document);
    }
    if args.watch {
        for news in client.watch(kind.name())? {
            for change in news?.changes {
                let name = change.name;
                output::line(&match change.object {
                    Some(object) if format == Format::Json => object.to_string(),
                    Some(object) => row(&object).join("  "),
                    None => format!("{name}  is gone"),
                })?;
            }
        }
        return Ok(());
    }
    let documents = client.documents(kind.plural())?;
    if format == Format::Json {
        return output::json(&documents);
    }
    let rows: Vec<_> = documents.iter().map(row).collect();
    output::table(["NAME", "GENERATION", "CHANGED", "DESCRIPTION", "SAYS"], &rows)
}

/// What they all have, and the rest of it in short.
fn row(document: &Value) -> [String; 5] {
    let text = |field: &str| document.get(field).and_then(Value::as_str).unwrap_or_default().to_owned();
    let meta = document.get("meta");
    let number = |field: &str| meta.and_then(|meta| meta.get(field)).and_then(Value::as_u64).unwrap_or(0);
    let rest = document.as_object().into_iter().flatten();
    let rest = rest.filter(|(field, _)| !matches!(field.as_str(), "name" | "description" | "meta"));
    let rest: Vec<String> = rest.map(|(field, value)| format!("{field}={}", brief(value))).collect();
    [
        text("name"),
        number("generation").to_string(),
        output::moment(number("changed_ms")),
        text("description"),
        rest.join(" "),
    ]
}

fn brief(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        Value::Array(items) if items.iter().all(Value::is_string) => {
            items.iter().filter_map(Value::as_str).collect::<Vec<_>>().join(",")
        }
        Value::Array(items) => items.len().to_string(),
        Value::Object(fields) => fields.keys().cloned().collect::<Vec<_>>().join(","),
        other => other.to_string(),
    }
}

pub(crate) fn delete(args: &Delete) -> Result<()> {
    args.server.connect()?.delete(args.kind.plural(), &args.name)?;
    output::line(&format!("{}/{} withdrawn", args.kind.name(), args.name))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_example_is_what_it_says() {
        let yaml: String =
            EXAMPLE.lines().filter_map(|line| line.strip_prefix("  ")).map(|l| format!("{l}\n")).collect();
        let documents = parse(&yaml).expect("YAML");
        let mut kinds: Vec<_> = documents.iter().map(|(kind, ..)| *kind).collect();
        kinds.sort_unstable();
        kinds.dedup();
        assert_eq!(kinds, Kind::ALL);
        for (kind, name, body) in documents {
            let body = Value::Object(body);
            let faults = match kind {
                Kind::Tenant => check::<Tenant>(body),
                Kind::Project => check::<Project>(body),
                Kind::Partition => check::<Partition>(body),
                Kind::Size => check::<Size>(body),
                Kind::Layout => check::<NamedLayout>(body),
                Kind::ImageSource => check::<ImageSource>(body),
                Kind::ImagePolicy => check::<ImagePolicy>(body),
                Kind::Reservation => check::<Reservation>(body),
            };
            assert_eq!(faults, None, "{name}");
        }
    }

    fn check<T: drophammer_protocol::resource::Kind>(body: Value) -> Option<String> {
        match serde_json::from_value::<T>(body) {
            Ok(document) => document.check().err().map(|faults| faults.to_string()),
            Err(error) => Some(error.to_string()),
        }
    }

    #[test]
    fn what_is_no_document_is_told() {
        for (name, text, want) in [
            ("no kind", "name: x", "document 1 (\"x\") doesn't say its kind: one of tenant, project"),
            ("another kind", "kind: moon\nname: x", "is of kind \"moon\""),
            ("no name", "kind: tenant", "document 1, a tenant, has no name"),
            ("a list", "- a\n- b", "document 1 is no list of fields"),
            ("no YAML", "a: b: c", ""),
        ] {
            let error = format!("{:#}", parse(text).expect_err(name));
            assert!(error.contains(want), "{name}: {error}");
        }
    }
}
