//! The packages in an image, as SPDX 2.3 says them.

use std::collections::BTreeMap;

use serde::Deserialize;
use serde_json::{Value, json};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

/// Beside the manifest.
pub(crate) const FILE: &str = "sbom.spdx.json";

/// One installed package.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Installed {
    pub(crate) kind: Kind,
    pub(crate) name: String,
    pub(crate) version: String,
    pub(crate) arch: String,
    pub(crate) source: Option<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Debian,
    Alpine,
}

/// `/var/lib/dpkg/status`: paragraphs of fields, of packages that are there and of some that were.
pub(crate) fn dpkg(status: &str) -> Vec<Installed> {
    let paragraphs = status.split("\n\n").map(fields);
    let installed = paragraphs.filter(|fields| fields.get("Status").is_some_and(|s| s.ends_with(" installed")));
    installed
        .filter_map(|fields| {
            Some(Installed {
                kind: Kind::Debian,
                name: (*fields.get("Package")?).to_owned(),
                version: (*fields.get("Version")?).to_owned(),
                arch: fields.get("Architecture").copied().unwrap_or("all").to_owned(),
                source: fields.get("Source").and_then(|s| s.split_whitespace().next()).map(str::to_owned),
            })
        })
        .collect()
}

fn fields(paragraph: &str) -> BTreeMap<&str, &str> {
    paragraph.lines().filter_map(|line| line.split_once(": ")).filter(|(key, _)| !key.starts_with(' ')).collect()
}

/// `/lib/apk/db/installed`: the same with fields of one letter.
pub(crate) fn apk(database: &str) -> Vec<Installed> {
    let one = |paragraph: &str| {
        let field =
            |key: &str| paragraph.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(':')).map(str::to_owned);
        Some(Installed {
            kind: Kind::Alpine,
            name: field("P")?,
            version: field("V")?,
            arch: field("A").unwrap_or_default(),
            source: field("o"),
        })
    };
    database.split("\n\n").filter_map(one).collect()
}

/// The document, the same for the same image.
pub(crate) fn spdx(reference: &str, created: u64, packages: &[Installed]) -> String {
    let created = i64::try_from(created).ok().and_then(|seconds| OffsetDateTime::from_unix_timestamp(seconds).ok());
    let created = created.and_then(|time| time.format(&Rfc3339).ok()).unwrap_or_default();
    let mut sorted: Vec<&Installed> = packages.iter().collect();
    sorted.sort_by_key(|package| (&package.name, &package.arch, &package.version));
    let id = |number: usize| format!("SPDXRef-Package-{number}");
    let list: Vec<Value> = sorted.iter().enumerate().map(|(number, package)| one(&id(number), package)).collect();
    let contains: Vec<Value> = (0..list.len())
        .map(|number| {
            json!({
                "spdxElementId": "SPDXRef-DOCUMENT",
                "relationshipType": "DESCRIBES",
                "relatedSpdxElement": id(number),
            })
        })
        .collect();
    let document = json!({
        "spdxVersion": "SPDX-2.3",
        "dataLicense": "CC0-1.0",
        "SPDXID": "SPDXRef-DOCUMENT",
        "name": reference,
        "documentNamespace": format!("urn:drophammer:image:{reference}:{created}"),
        "creationInfo": { "created": created, "creators": ["Tool: drophammer"] },
        "packages": list,
        "relationships": contains,
    });
    format!("{document:#}\n")
}

/// Names and versions in a document, with the architecture where its package URL tells it.
pub(crate) fn packages(text: &[u8]) -> Result<Vec<(String, String)>, serde_json::Error> {
    let document: Document = serde_json::from_slice(text)?;
    let one = |package: Listed| {
        let urls =
            package.external_refs.iter().filter_map(|reference| reference.reference_locator.split_once("?arch="));
        let arch = urls.map(|(_, arch)| arch.split('&').next().unwrap_or(arch)).next();
        let name = arch.map_or(package.name.clone(), |arch| format!("{}:{arch}", package.name));
        (name, package.version_info)
    };
    Ok(document.packages.into_iter().map(one).collect())
}

#[derive(Deserialize)]
struct Document {
    packages: Vec<Listed>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Listed {
    name: String,
    #[serde(default)]
    version_info: String,
    #[serde(default)]
    external_refs: Vec<Reference>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Reference {
    #[serde(default)]
    reference_locator: String,
}

fn one(id: &str, package: &Installed) -> Value {
    let (kind, vendor) = match package.kind {
        Kind::Debian => ("deb", "debian"),
        Kind::Alpine => ("apk", "alpine"),
    };
    // The package URL's rules: what isn't plain is escaped.
    let escaped = |text: &str| -> String {
        let plain = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-' | b'_' | b'~');
        text.bytes().map(|b| if plain(b) { char::from(b).to_string() } else { format!("%{b:02X}") }).collect()
    };
    let url = format!(
        "pkg:{kind}/{vendor}/{}@{}?arch={}",
        escaped(&package.name),
        escaped(&package.version),
        escaped(&package.arch)
    );
    let mut value = json!({
        "SPDXID": id,
        "name": package.name,
        "versionInfo": package.version,
        "downloadLocation": "NOASSERTION",
        "filesAnalyzed": false,
        "externalRefs": [{
            "referenceCategory": "PACKAGE-MANAGER",
            "referenceType": "purl",
            "referenceLocator": url,
        }],
    });
    if let Some(source) = &package.source {
        value["sourceInfo"] = json!(format!("built from {source}"));
    }
    value
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn packages_that_are_there() {
        let status = "Package: bash\nStatus: install ok installed\nArchitecture: amd64\nVersion: 5.2-1\nDescription: x\n \
                      more: not a field\n\nPackage: gone\nStatus: deinstall ok config-files\nVersion: 1\n\nPackage: \
                      libc6\nStatus: install ok installed\nSource: glibc (2.36)\nVersion: 1:2.36\nArchitecture: amd64\n";
        let package = |name: &str, version: &str, source: Option<&str>| Installed {
            kind: Kind::Debian,
            name: name.into(),
            version: version.into(),
            arch: "amd64".into(),
            source: source.map(str::to_owned),
        };
        let found = dpkg(status);
        assert_eq!(found, [package("bash", "5.2-1", None), package("libc6", "1:2.36", Some("glibc"))]);
        let apk = apk("C:Q1\nP:musl\nV:1.2-r0\nA:x86_64\no:musl\n\nP:no version\n\n");
        assert_eq!(apk.iter().map(|p| (p.name.as_str(), p.version.as_str())).collect::<Vec<_>>(), [("musl", "1.2-r0")]);

        let text = spdx("debian/1", 1_700_000_000, &found);
        assert_eq!(text, spdx("debian/1", 1_700_000_000, &[found[1].clone(), found[0].clone()]), "in any order");
        let document: Value = serde_json::from_str(&text).expect("JSON");
        assert_eq!(document["creationInfo"]["created"], "2023-11-14T22:13:20Z");
        let url = &document["packages"][1]["externalRefs"][0]["referenceLocator"];
        assert_eq!(url, "pkg:deb/debian/libc6@1%3A2.36?arch=amd64");
        let pair = |name: &str, version: &str| (name.to_owned(), version.to_owned());
        assert_eq!(
            packages(text.as_bytes()).expect("ours"),
            [pair("bash:amd64", "5.2-1"), pair("libc6:amd64", "1:2.36")]
        );
        let other = br#"{"spdxVersion":"SPDX-2.3","packages":[{"name":"a"},{"name":"b","versionInfo":"1"}]}"#;
        assert_eq!(packages(other).expect("another's"), [pair("a", ""), pair("b", "1")]);
        assert!(packages(b"[]").is_err() && packages(b"{}").is_err());
    }
}
