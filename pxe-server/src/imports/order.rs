//! Which images are to be here, and where they are from: the configuration's, and those that are declared.

use anyhow::Result;
use drophammer_images::{Hash, Import};
use drophammer_protocol::resource::ImageSource;

use crate::config::{ImportOrder, Settings};

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Order {
    /// `name/version`, or `name` for the newest.
    pub(super) image: String,
    /// Where it's from, for people.
    pub(super) from: String,
    /// Or why nothing can be done.
    pub(super) work: Result<Work, String>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Work {
    Compile(ImportOrder),
    /// From a store of published images.
    Mirror(String),
}

pub(super) fn all(settings: &Settings, sources: &[ImageSource]) -> Vec<Order> {
    let configured = settings.imports.iter().map(|order| Order {
        image: order.import.reference(),
        from: order.import.from.to_string(),
        work: Ok(Work::Compile(order.clone())),
    });
    configured.chain(sources.iter().map(|source| declared(source, settings))).collect()
}

fn declared(source: &ImageSource, settings: &Settings) -> Order {
    let mut order = Order {
        image: source.image.clone(),
        from: source.store.clone().unwrap_or_else(|| format!("image source {}", source.name)),
        work: Err(format!("image source {} says neither a store nor a url", source.name)),
    };
    match (&source.store, &source.url) {
        (Some(store), _) => order.work = Ok(Work::Mirror(store.clone())),
        (None, Some(url)) => match import(source, url) {
            Ok(import) => {
                order.from = import.from.to_string();
                order.work = Ok(Work::Compile(ImportOrder { import, cmdline: source.cmdline.trim().to_owned() }));
            }
            Err(error) => order.work = Err(format!("{error:#}")),
        },
        (None, None) => {}
    }
    // Refused when it's declared, unless the configuration came later or is another server's.
    let references = settings.imports.iter().map(|order| order.import.reference());
    if let Some(reference) = references.into_iter().find(|reference| source.may_bring(reference)) {
        order.work = Err(format!(
            "image source {} and this server's configuration both say where {reference} is from: remove one of them",
            source.name
        ));
    }
    order
}

fn import(source: &ImageSource, url: &str) -> Result<Import> {
    let hash = match (&source.sha256, source.unchecked) {
        (Some(sha256), _) => Hash::Sha256(sha256.clone()),
        (None, true) => Hash::None,
        (None, false) => Hash::Beside,
    };
    let (name, version) = source.parts();
    Import::new(url, Some(name), version, hash)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Config;

    #[test]
    fn what_is_configured_and_what_is_declared() {
        let text = "listen = [\"127.0.0.1:1\"]\n\
                    [[import]]\nurl = \"https://h/a.tar\"\nname = \"a\"\nversion = \"1\"\n";
        let settings = toml::from_str::<Config>(text).expect("TOML").check().expect("makes sense");
        let of = |image: &str, store: Option<&str>, url: Option<&str>| ImageSource {
            name: "x".into(),
            image: image.into(),
            store: store.map(str::to_owned),
            url: url.map(str::to_owned),
            ..ImageSource::default()
        };
        for (name, source, from, want) in [
            ("a store's newest", of("b", Some("s3://b"), None), "s3://b", "Ok(Mirror(\"s3://b\"))"),
            ("a tarball", of("b/1", None, Some("https://h/b.tar?key=secret")), "https://h/b.tar", "Ok(Compile"),
            ("no address", of("b/1", None, Some("https://[h/b.tar")), "image source x", "understanding the address"),
            ("the configuration's", of("a/1", None, Some("https://h/b.tar")), "https://h/b.tar", "remove one of them"),
            ("perhaps the configuration's", of("a", Some("/srv"), None), "/srv", "where a/1 is from"),
            ("another version", of("a/2", Some("/srv"), None), "/srv", "Ok(Mirror"),
        ] {
            let orders = all(&settings, &[source]);
            assert_eq!(orders.len(), 2, "{name}: the configuration's is there as well");
            assert_eq!(orders[1].from, from, "{name}");
            let work = format!("{:?}", orders[1].work);
            assert!(work.contains(want), "{name}: {work}");
        }
    }
}
