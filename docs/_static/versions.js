// Links to the other versions of the site, of which versions.json beside them lists those that are there
// (tools/site_versions.py). A site that stands alone, or is read from a disk, shows its own version only.
(async () => {
  const place = document.getElementById("versions");
  if (!place || location.protocol === "file:") return;
  const root = new URL(document.documentElement.dataset.content_root, location);
  const answer = await fetch(new URL("../versions.json", root)).catch(() => null);
  if (!answer?.ok) return;
  const here = root.pathname.split("/").at(-2);
  const choice = document.createElement("select");
  choice.setAttribute("aria-label", "version of the documentation");
  for (const { name, title } of await answer.json()) {
    choice.add(new Option(title, name, false, name === here));
  }
  choice.onchange = () => location.assign(new URL(`../${choice.value}/`, root));
  place.textContent = "Version ";
  place.append(choice);
})();
