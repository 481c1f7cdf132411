// What a screen reader is told of pictures and of buttons that show only a picture.
(() => {
  const labelOf = (element) => {
    const block = element.closest('.block');
    const label = block && block.querySelector('label, [data-testid="block-label"]');
    return (label && label.textContent.trim()) || 'Picture';
  };
  const describe = () => {
    document.querySelectorAll('div.empty[aria-label]:not([role])').forEach((e) => e.setAttribute('role', 'img'));
    document.querySelectorAll('.block img:not([alt]), .block img[alt=""]').forEach((e) => { e.alt = labelOf(e); });
    document.querySelectorAll('.block button:not([aria-label])').forEach((e) => {
      if (!e.innerText.trim() && !e.title) e.setAttribute('aria-label', labelOf(e));
    });
  };
  new MutationObserver(describe).observe(document.documentElement, { childList: true, subtree: true });
})();
