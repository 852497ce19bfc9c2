// Browsers start no worker for a page that is opened from disk, and the search runs in one. Say so where it would be.
if (location.protocol === "file:") {
  const words = "Search needs a server: python -m http.server --directory site"
  document.addEventListener("DOMContentLoaded", () => {
    const field = document.querySelector(".md-search__input")
    const box = document.querySelector("[data-md-component=search]")
    if (!field || !box) {
      return
    }
    field.placeholder = "Needs a server"
    box.title = words
    field.disabled = true
    // The theme hides the whole field once its worker has failed.
    const show = () => { if (box.hidden) { box.hidden = false } }
    new MutationObserver(show).observe(box, { attributes: true, attributeFilter: ["hidden"] })
    show()
    const results = box.querySelector(".md-search-result__meta")
    if (results) {
      results.textContent = words
    }
  })
}
