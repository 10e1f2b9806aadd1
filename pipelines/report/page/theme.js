// Before anything is drawn, so that no page flashes white at night.
const asked = matchMedia('(prefers-color-scheme: dark)');
document.documentElement.dataset.theme = asked.matches ? 'dark' : 'light';
