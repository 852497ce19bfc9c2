// Browsers start no worker for a page that is opened from disk, and the search runs in one. Say so in its field.
if (location.protocol === "file:") {
  document.addEventListener("DOMContentLoaded", () => {
    const field = document.querySelector(".md-search__input")
    if (field) {
      field.placeholder = "Search needs a server: python -m http.server --directory site"
      field.disabled = true
    }
  })
}
